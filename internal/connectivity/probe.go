package connectivity

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/twillnet/twill/internal/echo"
)

const (
	pingTries = 3 // of a ping before it counts as lost
	udpTries  = 5 // of a datagram: UDP promises nothing
	udpHeader = 8 // bytes, RFC 768
)

// prober tests ways from this node.
type prober struct {
	cookie []byte
	wait   time.Duration
}

// pings sends pings, repeats those without an answer, and returns the round-trip times of
// the others.
func (p *prober) pings(ctx context.Context, pings []echo.Ping) (map[echo.Ping]time.Duration, error) {
	got := make(map[echo.Ping]time.Duration)
	left := pings
	for range pingTries {
		if len(left) == 0 {
			break
		}
		some, err := echo.Once(ctx, left, p.wait/pingTries)
		if err != nil {
			return nil, err
		}
		var silent []echo.Ping
		for _, one := range left {
			if rtt, ok := some[one]; ok {
				got[one] = rtt
			} else {
				silent = append(silent, one)
			}
		}
		left = silent
	}
	return got, nil
}

// tcp sends bytes to an end and compares what comes back.
func (p *prober) tcp(ctx context.Context, from netip.Addr, to netip.AddrPort) error {
	d := net.Dialer{Timeout: p.wait}
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(p.wait)); err != nil {
		return err
	}
	sent := make([]byte, cookieLen+tcpBytes)
	_, _ = rand.Read(sent) // never fails
	copy(sent, p.cookie)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	got := make([]byte, tcpBytes)
	n, err := io.ReadFull(c, got)
	_ = c.Close() // ends Write if that still waits
	switch werr := <-wrote; {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the connection ended after %d of %d bytes", n, tcpBytes)
	case err != nil:
		return fmt.Errorf("%w after %d of %d bytes", plain(err), n, tcpBytes)
	case werr != nil:
		return werr
	case !bytes.Equal(got, sent[cookieLen:]):
		return errors.New("the bytes that came back differ from those sent")
	}
	return nil
}

// udp sends datagrams of packets of size bytes to an end until one comes back. It returns
// how many did not.
func (p *prober) udp(ctx context.Context, from netip.Addr, to netip.AddrPort, size int) (lost int, err error) {
	d := net.Dialer{Control: neverFragment}
	if from.IsValid() {
		d.LocalAddr = &net.UDPAddr{IP: from.AsSlice()}
	}
	c, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	sent := make([]byte, max(size-echo.IPHeaderLen(to.Addr())-udpHeader, cookieLen+1))
	got := make([]byte, len(sent)+1)
	_, _ = rand.Read(sent)
	copy(sent, p.cookie)
	for lost = range udpTries {
		sent[len(sent)-1] = byte(lost) // late answers to others are not taken for this one's
		_, err = c.Write(sent)
		for until := time.Now().Add(p.wait / udpTries); err == nil; {
			if err = c.SetReadDeadline(until); err != nil {
				break
			}
			var n int
			if n, err = c.Read(got); err == nil && bytes.Equal(got[:n], sent) {
				return lost, nil
			}
		}
		if ctx.Err() != nil {
			return lost, context.Cause(ctx)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break // refused; the answer to another would be the same
		}
	}
	return udpTries, err
}

// plain returns err without what says only where it happened, which the result does.
func plain(err error) error {
	var number syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("no answer")
	case errors.As(err, &number):
		return number
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("no answer")
	}
	return err
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
