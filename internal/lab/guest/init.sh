#!/bin/busybox sh
# The first process of a guest. It prepares the system, reports that, and then runs
# one line of the serial console after the other. If it ends, so does the guest.
/bin/busybox mkdir -p /sbin /usr/bin
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin HOME=/

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

# The guest is a node, so it forwards. Addresses are usable at once. The defaults of
# a network card have to be set before its driver is loaded.
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad

for module in /modules/*; do
	insmod "$module" || exit 1
done
ip link set lo up

# Input is not echoed. Of the kernel's messages only a panic is shown; dmesg
# has the others.
stty -echo
dmesg -n 1
echo "guest: ready"

while read -r line; do
	eval "$line"
done
