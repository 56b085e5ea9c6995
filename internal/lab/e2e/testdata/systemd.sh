#!/bin/sh
# systemd.sh ROOT TWILLD UNIT ENVIRONMENT: boot this machine's systemd in a root
# of its own at ROOT, an empty directory, with twilld installed as a service and
# the file ENVIRONMENT as its settings. Runs as the first process of a process
# namespace, in mount and control group namespaces of its own, which all that it
# makes goes with.
set -eu
twilld=$(realpath "$2") unit=$(realpath "$3") environment=$(realpath "$4")
mount -t tmpfs -o mode=0755 none "$1"
cd "$1"
mkdir -p usr etc/systemd/system etc/twill var/lib run tmp proc sys dev root home old

# The programs are the machine's.
mount --rbind /usr usr
mount -o remount,bind,ro usr
for dir in bin sbin lib lib32 lib64; do
	if [ -L /$dir ]; then
		cp -d /$dir $dir
	elif [ -d /$dir ]; then
		mkdir $dir
		mount --rbind /$dir $dir
	fi
done
for file in ld.so.cache alternatives protocols services; do
	[ ! -e /etc/$file ] || cp -a /etc/$file etc/
done
mount -t tmpfs -o mode=0755 none usr/local
mkdir usr/local/bin
cp "$twilld" usr/local/bin/twilld

mount -t proc none proc
mount -t sysfs none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=0755 none dev
mkdir dev/net dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs none dev/shm
for device in null zero full random urandom tty net/tun; do
	touch dev/$device
	mount --bind /dev/$device dev/$device
done

# The kernel's log is the machine's.
touch dev/kmsg
mount --bind /dev/null dev/kmsg
printf '[Journal]\nReadKMsg=no\n' >etc/systemd/journald.conf

cp "$unit" etc/systemd/system/twilld.service
cp "$environment" etc/twill/twilld.env
mkdir etc/systemd/system/twilld.service.d
# A process that a busy machine leaves waiting is not taken for one that hangs. How often
# twilld sends keep-alives follows from the variable.
printf '[Service]\nWatchdogSec=1h\nEnvironment=WATCHDOG_USEC=2000000\n' >etc/systemd/system/twilld.service.d/test.conf
# Nothing else is started but for the log.
for service in /usr/lib/systemd/system/sysinit.target.wants/*.service; do
	case $service in
	*/systemd-journald.service) ;;
	*) ln -s /dev/null etc/systemd/system/"${service##*/}" ;;
	esac
done
printf '[Unit]\nWants=systemd-journald.service\n' >etc/systemd/system/default.target
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
: >etc/fstab

pivot_root . old
umount -l /old
rmdir /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=console --show-status=no
