//go:build !noembed

package embedetcd

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// echoFront returns the address of a front without TLS before a server that sends back
// what it receives.
func echoFront(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	at := testkit.FreePort(t)
	f, err := openFront(at, nil, "tcp", l.Addr().String())
	testkit.Must(t, err)
	t.Cleanup(f.close)
	return at
}

func dial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	testkit.Must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// serves waits until a client has an answer, and closes its connection. The front may
// not have noticed yet that others are closed.
func serves(t *testing.T, at netip.AddrPort) {
	t.Helper()
	testkit.Eventually(t, "a client has an answer", func() bool {
		c := dial(t, at)
		defer c.Close()
		return echoes(c)
	})
}

// echoes reports whether the server behind the front answers on c.
func echoes(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	if _, err := c.Write([]byte("hello")); err != nil {
		return false
	}
	got := make([]byte, 5)
	_, err := io.ReadFull(c, got)
	return err == nil && string(got) == "hello"
}

func TestClientsOfTheFrontReachTheEtcd(t *testing.T) {
	at := echoFront(t)
	for range 2 * frontLimits.Local { // connections that are closed do not count
		serves(t, at)
	}
}

// Connections beyond the limit are closed, and those within it end when they are idle
// from the beginning.
func TestIdleConnectionsToTheFrontAreBounded(t *testing.T) {
	at := echoFront(t)
	var idle []net.Conn
	for range 1000 {
		idle = append(idle, dial(t, at))
	}
	refused := make(chan int)
	for _, c := range idle {
		go func() {
			_ = c.SetReadDeadline(time.Now().Add(testkit.Patience))
			n := 0
			if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
				n = 1
			}
			refused <- n
		}()
	}
	n := 0
	for range idle {
		n += <-refused
	}
	if n != len(idle) {
		t.Errorf("%d of %d idle connections were closed", n, len(idle))
	}
	serves(t, at)
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
