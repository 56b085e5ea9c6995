#!/bin/sh
# After installation or upgrade. A new installation is not started: it must be
# configured first. An upgrade restarts the service if it runs.
set -e
[ -d /run/systemd/system ] || exit 0
for program in /usr/lib/systemd /lib/systemd; do
	[ ! -x $program/systemd-sysctl ] || $program/systemd-sysctl 50-twill.conf || :
	[ ! -x $program/systemd-modules-load ] || $program/systemd-modules-load twill.conf || :
done
systemctl daemon-reload
systemctl try-restart twilld
