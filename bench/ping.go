package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/bench/report"
)

const (
	ipv4HeaderLen = 20
	icmpHeaderLen = 8
	// echoes is the number of echoes sent for one figure.
	echoes = 20
)

// fullPing is the load of ICMP echoes as large as the MTU, with DF set. One that is a
// byte larger must be refused.
func fullPing(ctx context.Context, c *Connection, _ time.Duration) (report.Figures, error) {
	f, err := pingAtMTU(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", c.Server.Addr, c.Client.NS, err)
	}
	return f, nil
}

func pingAtMTU(ctx context.Context, c *Connection) (report.Figures, error) {
	fd, err := pingSocket(c.Client)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: c.Server.Addr.As4()}

	var trips []time.Duration
	for i := range echoes {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		d, err := echo(fd, to, c.MTU, uint16(i))
		if err != nil && len(trips) > 0 {
			return nil, fmt.Errorf("%d bytes, DF, echo %d: %w", c.MTU, i, err)
		}
		if err == nil {
			trips = append(trips, d) // the first may be lost to neighbour discovery
		}
	}
	if len(trips) == 0 {
		return nil, fmt.Errorf("%d bytes, DF: no answer", c.MTU)
	}
	if _, err := echo(fd, to, c.MTU+1, echoes); err == nil {
		return nil, fmt.Errorf("%d bytes, DF, went through an MTU of %d", c.MTU+1, c.MTU)
	} else if !errors.Is(err, unix.EMSGSIZE) {
		return nil, fmt.Errorf("%d bytes, DF: %w, want EMSGSIZE", c.MTU+1, err)
	}
	slices.Sort(trips)
	return report.Figures{
		report.PingSize.Key:      float64(c.MTU),
		report.PingRoundTrip.Key: float64(percentile(trips, 0.5)) / float64(time.Microsecond),
	}, nil
}

// answers waits for an answer to an echo request as large as the MTU. On a wire with loss
// several in a row may be lost.
func answers(ctx context.Context, c *Connection) error {
	fd, err := pingSocket(c.Client)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range echoes {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, err = echo(fd, &unix.SockaddrInet4{Addr: c.Server.Addr.As4()}, c.MTU, uint16(i)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("ping %s from %s: %d bytes, DF, %d times: %w", c.Server.Addr, c.Client.NS, c.MTU, echoes, err)
}

// pingSocket opens a raw ICMP socket whose packets have DF set and are not fragmented.
func pingSocket(e Endpoint) (fd int, err error) {
	err = e.NS.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("ICMP socket: %w", err)
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err == nil {
		err = setTimeouts(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("ICMP socket: %w", err)
	}
	return fd, nil
}

// errNoAnswer reports that no answer arrived within half a second.
var errNoAnswer = errors.New("no answer")

// echo sends an echo request in an IP packet of size bytes and waits for the
// answer, which must have the same size.
func echo(fd int, to *unix.SockaddrInet4, size int, seq uint16) (time.Duration, error) {
	msg, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: fd & math.MaxUint16, Seq: int(seq), Data: make([]byte, size-ipv4HeaderLen-icmpHeaderLen),
	}}).Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("encode echo request: %w", err)
	}

	sent := time.Now()
	if err := unix.Sendto(fd, msg, 0, to); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	buf := make([]byte, size+1) // the socket delivers the IP header as well
	for time.Since(sent) < 500*time.Millisecond {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil || n < ipv4HeaderLen+icmpHeaderLen {
			continue
		}
		reply := buf[ipv4HeaderLen:n]
		if reply[0] == byte(ipv4.ICMPTypeEchoReply) && slices.Equal(reply[4:], msg[4:]) {
			return time.Since(sent), nil
		}
	}
	return 0, errNoAnswer
}
