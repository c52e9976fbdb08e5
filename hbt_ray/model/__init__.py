"""The dual encoder, its loss and its export."""
