package httplimit

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound the connections that are open at once.
type Limits struct {
	// Remote limits remote connections in total, PerAddress those from one
	// address. Connections beyond a limit are closed as soon as they are accepted,
	// so that others do not wait behind them.
	Remote, PerAddress int
	// Local limits connections from this host separately, so that remote clients
	// that use up the others cannot lock out the kubelet or an operator.
	Local int
	// Replace makes a connection beyond a limit take the place of the one, of those that
	// the limit is for, to which nothing has been written for longest. It is for servers
	// that answer at once: a client that only holds connections locks out no other.
	Replace bool
	// Reserve keeps a file descriptor for a connection while the process has no other, as
	// accept(2) needs one. It serves one connection at a time.
	Reserve bool
}

// Listener returns l with limits.
func Listener(l net.Listener, limits Limits) net.Listener {
	limited := &listener{Listener: l, limits: limits, open: make(map[netip.Addr]map[*conn]bool)}
	limited.refill()
	return limited
}

type listener struct {
	net.Listener
	limits Limits

	mu     sync.Mutex
	open   map[netip.Addr]map[*conn]bool // by remote address; the zero Addr: local ones
	remote int
	spare  *os.File // kept for Limits.Reserve; nil: none is wanted, or it is in use
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if isShort(err) && l.release() {
			accepted, err = l.Listener.Accept()
		}
		l.refill()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, from: source(accepted), of: l}
		c.written.Store(int64(time.Since(start)))
		admitted, replaced := l.admit(c)
		if replaced != nil {
			replaced.Conn.Close()
		}
		if admitted {
			return c, nil
		}
		accepted.Close()
	}
}

// isShort reports whether err means that there is no file descriptor left.
func isShort(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// release closes the reserved descriptor, so that there is one. It reports whether there
// was any.
func (l *listener) release() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare == nil {
		return false
	}
	l.spare.Close()
	l.spare = nil
	return true
}

// refill reserves a descriptor again, if one is wanted and there is one.
func (l *listener) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limits.Reserve && l.spare == nil {
		l.spare, _ = os.Open(os.DevNull) // without one, the next connection that is closed tries again
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits.Reserve = false
	if l.spare != nil {
		l.spare.Close()
		l.spare = nil
	}
	return err
}

// source returns the address of a remote host; the zero Addr for this one.
func source(c net.Conn) netip.Addr {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{} // a unix socket
	}
	from := remote.AddrPort().Addr().Unmap()
	if local, ok := c.LocalAddr().(*net.TCPAddr); from.IsLoopback() || ok && local.AddrPort().Addr().Unmap() == from {
		return netip.Addr{}
	}
	return from
}

// admit counts c if the limits, or those of Replace, allow it. The caller must close the
// connection that it replaces, which no longer counts.
func (l *listener) admit(c *conn) (admitted bool, replaced *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	most := l.limits.PerAddress
	if !c.from.IsValid() {
		most = l.limits.Local
	}
	switch {
	case len(l.open[c.from]) >= most:
		replaced = quietest(l.open[c.from], nil)
	case c.from.IsValid() && l.remote >= l.limits.Remote:
		for from, conns := range l.open {
			if from.IsValid() {
				replaced = quietest(conns, replaced)
			}
		}
	default:
		l.add(c)
		return true, nil
	}
	if !l.limits.Replace || replaced == nil {
		return false, nil
	}
	l.remove(replaced)
	l.add(c)
	return true, replaced
}

// quietest returns the connection, of conns and c unless that is nil, to which nothing has
// been written for longest.
func quietest(conns map[*conn]bool, c *conn) *conn {
	for other := range conns {
		if c == nil || other.written.Load() < c.written.Load() {
			c = other
		}
	}
	return c
}

// add and remove require mu. remove has no effect on a connection that does not count.
func (l *listener) add(c *conn) {
	if l.open[c.from] == nil {
		l.open[c.from] = make(map[*conn]bool)
	}
	l.open[c.from][c] = true
	if c.from.IsValid() {
		l.remote++
	}
}

func (l *listener) remove(c *conn) {
	if !l.open[c.from][c] {
		return
	}
	delete(l.open[c.from], c)
	if len(l.open[c.from]) == 0 {
		delete(l.open, c.from)
	}
	if c.from.IsValid() {
		l.remote--
	}
}

// start is what the times of connections are counted from.
var start = time.Now()

// conn is a connection that counts toward the limits until it is closed.
type conn struct {
	net.Conn
	from    netip.Addr // see source
	of      *listener
	written atomic.Int64 // when it was accepted or last written to, in ns since start
}

// NetConn returns the connection as it was accepted.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.written.Store(int64(time.Since(start)))
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	c.of.remove(c)
	c.of.mu.Unlock()
	err := c.Conn.Close()
	c.of.refill()
	return err
}
