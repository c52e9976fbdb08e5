#!/usr/bin/env bash
# On an EC2 spot instance: waits for AWS's notice of its end, two minutes ahead, and passes it on to Ray, so that a
# training writes a checkpoint at its next log line and goes on elsewhere. aws.yaml starts it beside `ray start`.
# usage: spot-notice.sh HEAD:PORT
set -euo pipefail
export RAY_ADDRESS=$1
metadata=${EC2_METADATA:-http://169.254.169.254/latest}
poll=${SPOT_POLL_SECONDS:-5}
deadline=110  # seconds from the notice to the end, less a poll and a checkpoint's last bytes

answer() { wget --quiet --tries=1 --timeout=2 --output-document=- "$@"; }

notice() {
    local session
    session=$(answer --method=PUT --header='X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") || return
    answer --header="X-aws-ec2-metadata-token: $session" "$metadata/meta-data/spot/instance-action"
}

until said=$(notice); do sleep "$poll"; done  # 404 until there is one
echo "EC2 announces: $said"
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "EC2 spot: $said" \
    --deadline-remaining-seconds "$deadline"
