// Package embedetcd is an etcd of one member inside the daemon, for a first node
// or a single machine. It is etcd's own server, so --etcd-endpoints on other
// nodes and etcdctl work with it as with any other.
//
// It makes the binary several times as large; the build tag noembed leaves it
// out.
package embedetcd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
)

// DefaultPort is the port on which etcd listens for clients, and flannel's
// default.
const DefaultPort = 2379

// loopback is the address that the daemon itself connects to.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Config configures the etcd.
type Config struct {
	// Dir holds all data. It is created if missing, and no other user may read it.
	Dir string
	// Listen is the address on which other nodes are served, besides the loopback.
	// The zero value serves none.
	Listen netip.AddrPort
	// Plaintext serves other nodes without TLS or authentication. Without it they
	// need a certificate of the authority in Dir, see package etcdtls.
	Plaintext bool
	Logger    *slog.Logger
}

// secure reports whether other nodes are served over TLS.
func (c *Config) secure() bool {
	return c.Listen.IsValid() && !c.Listen.Addr().IsLoopback() && !c.Plaintext
}

// TLSDir returns the directory of the authority of an etcd with its data in
// dir.
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

// Endpoint returns the URL at which a daemon on this host reaches an etcd whose
// Config.Listen is listen.
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
