package httplimit

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeConn is a connection between two addresses.
type fakeConn struct {
	net.Conn
	local, remote string
	closed        bool
}

func (c *fakeConn) LocalAddr() net.Addr         { return tcp(c.local) }
func (c *fakeConn) RemoteAddr() net.Addr        { return tcp(c.remote) }
func (c *fakeConn) Close() error                { c.closed = true; return nil }
func (c *fakeConn) Write(b []byte) (int, error) { return len(b), nil }

func tcp(a string) net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", a)
	if err != nil {
		panic(err)
	}
	return addr
}

// queue is a listener whose connections are given.
type queue struct {
	net.Listener
	conns []*fakeConn
}

func (q *queue) Accept() (net.Conn, error) {
	if len(q.conns) == 0 {
		return nil, io.EOF
	}
	c := q.conns[0]
	q.conns = q.conns[1:]
	return c, nil
}

// accepted returns the connections that come through.
func accepted(t *testing.T, l net.Listener) (all []net.Conn) {
	t.Helper()
	for {
		c, err := l.Accept()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
}

func TestAStrangerTakesNoMoreThanItsShareOfConnections(t *testing.T) {
	q := &queue{}
	l := Listener(q, Limits{Remote: 3, PerAddress: 2, Local: 2})
	come := func(n int, remote string) {
		for range n {
			q.conns = append(q.conns, &fakeConn{local: "192.0.2.1:8081", remote: remote})
		}
	}
	come(100, "10.5.1.2:1000")
	stranger := accepted(t, l)
	if len(stranger) != 2 {
		t.Fatalf("one address has %d connections, want 2", len(stranger))
	}
	come(1, "10.5.1.3:1000")
	if other := accepted(t, l); len(other) != 1 {
		t.Errorf("another address got %d connections, want 1", len(other))
	}
	come(1, "10.5.1.4:1000")
	if further := accepted(t, l); len(further) != 0 {
		t.Errorf("%d connections beyond the limit", len(further))
	}
	come(1, "127.0.0.1:1000")
	come(100, "192.0.2.1:1000") // this host, by its own address
	if own := accepted(t, l); len(own) != 2 {
		t.Errorf("this host got %d connections, want 2", len(own))
	}
	stranger[0].Close()
	stranger[0].Close() // counts once
	come(2, "10.5.1.4:1000")
	if next := accepted(t, l); len(next) != 1 {
		t.Errorf("after one had closed, %d came in, want 1", len(next))
	}
}

// A client that only holds connections, sending half a request or none, locks out no other.
func TestAConnectionTakesThePlaceOfTheQuietest(t *testing.T) {
	for what, from := range map[string]struct {
		held []string
		next string
	}{
		"of this host":   {[]string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, "127.0.0.1:4"},
		"of one address": {[]string{"10.5.1.2:1", "10.5.1.2:2", "10.5.1.2:3"}, "10.5.1.2:4"},
		"of many":        {[]string{"10.5.1.2:1", "10.5.1.3:1", "10.5.1.4:1"}, "10.5.1.5:1"},
	} {
		q := &queue{}
		l := Listener(q, Limits{Remote: 3, PerAddress: 3, Local: 3, Replace: true})
		come := func(remote string) net.Conn {
			t.Helper()
			q.conns = append(q.conns, &fakeConn{local: "192.0.2.1:8081", remote: remote})
			all := accepted(t, l)
			if len(all) != 1 {
				t.Fatalf("%s: %d connections of %s got in", what, len(all), remote)
			}
			return all[0]
		}
		closed := func(c net.Conn) bool { return c.(*conn).Conn.(*fakeConn).closed }
		answered, silent, last := come(from.held[0]), come(from.held[1]), come(from.held[2])
		if _, err := answered.Write([]byte("HTTP/1.1 200 OK")); err != nil {
			t.Fatal(err)
		}
		next := come(from.next)
		if !closed(silent) || closed(answered) || closed(last) || closed(next) {
			t.Errorf("%s: not the one that is silent for longest was closed", what)
		}
		silent.Close() // by the server; its place is another's now
		come(from.next)
		if !closed(last) || closed(answered) || closed(next) {
			t.Errorf("%s: a place was given up twice", what)
		}
	}
}

func TestReplacedConnectionsAreClosed(t *testing.T) {
	q := &queue{}
	for range 100 {
		q.conns = append(q.conns, &fakeConn{local: "192.0.2.1:8081", remote: "10.5.1.2:1000"})
	}
	open := 0
	for _, c := range accepted(t, Listener(q, Limits{Remote: 10, PerAddress: 8, Replace: true})) {
		if !c.(*conn).Conn.(*fakeConn).closed {
			open++
		}
	}
	if open != 8 {
		t.Errorf("%d connections are open, want 8", open)
	}
}

func TestRefusedConnectionsAreClosed(t *testing.T) {
	c := &fakeConn{local: "192.0.2.1:8081", remote: "10.5.1.2:1000"}
	accepted(t, Listener(&queue{conns: []*fakeConn{c}}, Limits{}))
	if !c.closed {
		t.Error("it is open")
	}
}

func TestErrorsOfTheServerAreLoggedOnceAndStructured(t *testing.T) {
	var out bytes.Buffer
	s := Server(http.NotFoundHandler(), slog.New(slog.NewTextHandler(&out, nil)))
	for range 1000 {
		s.ErrorLog.Printf("http: Accept error: %v; retrying in 1s", errors.New("accept4: too many open files"))
	}
	if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), `level=WARN msg="HTTP server error, further`) ||
		!strings.Contains(out.String(), `error="Accept error: accept4: too many open files; retrying in 1s"`) {
		t.Errorf("%d lines: %s", n, out.String())
	}
}

// short is a listener of a process that has no descriptors but the reserved one.
type short struct {
	net.Listener
	l    *listener
	last *fakeConn
}

func (s *short) Accept() (net.Conn, error) {
	if s.l.spare != nil || s.last != nil && !s.last.closed {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	s.last = &fakeConn{local: "127.0.0.1:1", remote: "127.0.0.1:2"}
	return s.last, nil
}

func (s *short) Close() error { return nil }

func TestReservedDescriptorServesOneConnectionAfterTheOther(t *testing.T) {
	inner := new(short)
	l := Listener(inner, Limits{Local: 9, Reserve: true}).(*listener)
	inner.l = l
	defer l.Close()
	for i := range 3 {
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		if _, err := l.Accept(); !errors.Is(err, unix.EMFILE) {
			t.Errorf("beside connection %d: %v, want EMFILE", i+1, err)
		}
		c.Close()
	}
}
