package httplimit

import (
	"net"
	"net/netip"
	"sync"
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
}

// Listener returns l with limits.
func Listener(l net.Listener, limits Limits) net.Listener {
	return &listener{Listener: l, limits: limits, open: make(map[netip.Addr]int)}
}

type listener struct {
	net.Listener
	limits Limits

	mu     sync.Mutex
	open   map[netip.Addr]int // remote connections by address; the zero Addr: local ones
	remote int
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(c)
		if l.admit(from) {
			return &conn{Conn: c, release: sync.OnceFunc(func() { l.release(from) })}, nil
		}
		c.Close()
	}
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

func (l *listener) admit(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !from.IsValid() {
		if l.open[from] == l.limits.Local {
			return false
		}
	} else {
		if l.remote == l.limits.Remote || l.open[from] == l.limits.PerAddress {
			return false
		}
		l.remote++
	}
	l.open[from]++
	return true
}

func (l *listener) release(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from.IsValid() {
		l.remote--
	}
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

// conn is a connection that counts toward the limits until it is closed.
type conn struct {
	net.Conn
	release func()
}

// NetConn returns the connection as it was accepted.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
