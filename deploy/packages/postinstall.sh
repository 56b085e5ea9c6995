#!/bin/sh
# After installation or upgrade. A new installation is not started: it must be
# configured first. After an upgrade the new version takes over from the one that runs,
# without a lost packet; if it cannot, the old one goes on.
set -e
[ -d /run/systemd/system ] || exit 0
for program in /usr/lib/systemd /lib/systemd; do
	[ ! -x $program/systemd-sysctl ] || $program/systemd-sysctl 50-twill.conf || :
	[ ! -x $program/systemd-modules-load ] || $program/systemd-modules-load twill.conf || :
done
systemctl daemon-reload
if systemctl is-active --quiet twilld && ! systemctl reload twilld; then
	echo "twilld: the new version did not take over and the old one keeps running: see 'journalctl -u twilld', then 'systemctl restart twilld'" >&2
fi
