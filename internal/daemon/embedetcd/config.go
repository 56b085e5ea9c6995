// Package embedetcd is an etcd of one member inside the daemon, for a first node
// or a single machine. It is etcd's own server, so other nodes' --etcd-endpoints
// and etcdctl work with it as with any other.
//
// It makes the daemon several times as large; the build tag noembed leaves it
// out.
package embedetcd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
)

// DefaultPort is where etcd listens for clients; flannel looks for it there.
const DefaultPort = 2379

// loopback is where the daemon itself asks.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Config says how the etcd runs.
type Config struct {
	// Dir holds all data. It is created if it is missing, and no other user may
	// read it.
	Dir string
	// Listen is where other nodes are answered, besides the loopback. The zero
	// value: nowhere.
	Listen netip.AddrPort
	// Plaintext answers other nodes without TLS, whoever they are. Without it they
	// need a certificate of the authority in Dir, see package etcdtls.
	Plaintext bool
	Logger    *slog.Logger
}

// secure reports whether other nodes are answered, by TLS.
func (c *Config) secure() bool {
	return c.Listen.IsValid() && !c.Listen.Addr().IsLoopback() && !c.Plaintext
}

// TLSDir is where the authority of an etcd with its data in dir is.
func TLSDir(dir string) string { return filepath.Join(dir, "tls") }

// ParseListen reads ADDRESS or ADDRESS:PORT.
func ParseListen(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), DefaultPort), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q: want an IP address, or one with a port: 192.0.2.1:%d", s, DefaultPort)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// Endpoint returns the URL at which a daemon on this host reaches the etcd that
// listens there.
func Endpoint(listen netip.AddrPort) string {
	port := uint16(DefaultPort)
	if listen.IsValid() {
		port = listen.Port()
	}
	if listen.Addr().IsLoopback() {
		return "http://" + listen.String()
	}
	return "http://" + loopback.String() + ":" + strconv.Itoa(int(port))
}
