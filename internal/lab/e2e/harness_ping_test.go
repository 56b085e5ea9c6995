package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// acquaint lets the kernels on the path between from and to resolve all the
// addresses that they need. While one resolves an address, packets that wait for
// the answer are overtaken by later ones.
func acquaint(from *netlab.Pod, to netip.Addr) error { return ping(from, to, 100) }

// ping sends an ICMP echo request, which may not be fragmented, in an IP packet
// of size bytes and waits for the answer.
func ping(from *netlab.Pod, to netip.Addr, size int) error {
	return pingWithin(testkit.Patience, from, to, size)
}

// pingOnce is a small ping that gives up soon. It ignores late answers to
// other pings.
func pingOnce(from *netlab.Pod, to netip.Addr) error {
	return pingWithin(time.Second, from, to, 100)
}

// pings numbers the echo requests of this process.
var pings atomic.Uint32

// pingWithin is ping for callers that do not expect an answer.
func pingWithin(wait time.Duration, from *netlab.Pod, to netip.Addr, size int) error {
	network, src, headers, request := "ip4:icmp", from.Addr, 28, byte(8)
	level, discover, do := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if to.Is6() {
		network, src, headers, request = "ip6:ipv6-icmp", from.Addr6, 48, 128
		level, discover, do = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	pc, err := from.NS.ListenPacket(network, src.String())
	if err != nil {
		return err
	}
	defer pc.Close()
	conn := pc.(*net.IPConn)
	if err := setInt(conn, level, discover, do); err != nil {
		return err
	}
	if to.Is6() {
		// Without it a raw IPv6 socket fragments by itself.
		if err := setInt(conn, level, unix.IPV6_DONTFRAG, 1); err != nil {
			return err
		}
	}
	msg := binary.BigEndian.AppendUint32([]byte{request, 0, 0, 0}, pings.Add(1)) // identifier and sequence number behind the checksum
	data := make([]byte, size-headers)
	_, _ = io.ReadFull(content(uint64(size), int64(len(data))), data)
	msg = append(msg, data...)
	if to.Is4() { // for ICMPv6 the kernel does it, RFC 3542 §3.1
		binary.BigEndian.PutUint16(msg[2:], ^onesSum(msg))
	}
	if _, err := conn.WriteTo(msg, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("no answer from %s: %w", to, err)
		}
		reply := buf[:n]
		if n >= 8 && (reply[0] == 0 || reply[0] == 129) && bytes.Equal(reply[4:], msg[4:]) {
			return nil
		}
	}
}
