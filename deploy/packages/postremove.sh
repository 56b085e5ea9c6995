#!/bin/sh
# After removal. Routes, rules and subnet.env stay, so that pods keep their network
# until flanneld or another twilld takes over; "twilld --cleanup" before the removal
# removes them.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
