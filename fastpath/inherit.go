package fastpath

import (
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

// A socket outlives the process that opened it if another process holds a copy of its
// descriptor, and the datagrams waiting in the socket survive with it.

func receiveName(i int) string { return "udp-" + strconv.Itoa(i) }
func sendName(i int) string    { return "udp-" + strconv.Itoa(i) + "-send" }
func sinkName(int) string      { return "udp-strangers" }

// Descriptors returns the descriptors of the sockets by name, for
// [Config.Inherited] of another process. The engine still owns them.
func (e *Engine) Descriptors() map[string]int {
	fds := make(map[string]int)
	for i, s := range e.shards {
		fds[receiveName(i)] = s.fd
		if s.sendFD != s.fd {
			fds[sendName(i)] = s.sendFD
		}
	}
	if e.strangers != nil {
		fds[sinkName(0)] = e.strangers.sink
	}
	return fds
}

// receivers returns a socket that receives at local for each queue of the device,
// inherited ones if there is one for each. sink is the inherited sink that belongs to
// them, see strangers, or -1.
func (cfg *Config) receivers(local netip.AddrPort) (fds []int, sink int, err error) {
	atLocal := func(a netip.AddrPort) bool { return a == local }
	sinks := cfg.inherit(1, sinkName, atLocal)
	n := len(cfg.Device.Queues)
	if fds := cfg.inherit(n, receiveName, atLocal); fds != nil {
		if sinks == nil {
			return fds, -1, nil
		}
		return fds, sinks[0], nil
	}
	closeAll(sinks)
	fds, err = openSockets(local, n, n > 1 || cfg.filtersStrangers())
	return fds, -1, err
}

// senders returns a socket for each queue of the device that sends from local with
// a port of its own.
func (cfg *Config) senders(local netip.Addr) ([]int, error) {
	n := len(cfg.Device.Queues)
	if fds := cfg.inherit(n, sendName, func(a netip.AddrPort) bool { return a.Addr() == local }); fds != nil {
		return fds, nil
	}
	return openSenders(local, n)
}

// filtersStrangers reports whether the sockets have to be opened in a way that lets a
// sink be added to them.
func (cfg *Config) filtersStrangers() bool {
	return cfg.StrangerFilter != tun.Off && cfg.SourceCheck == CheckStrict
}

// inherit takes the n sockets with these names out of cfg.Inherited and returns them.
// If any is missing or unusable, it closes all of them and returns none.
func (cfg *Config) inherit(n int, name func(int) string, usable func(netip.AddrPort) bool) []int {
	var fds []int
	for i := 0; ; i++ {
		fd, ok := cfg.Inherited[name(i)]
		if !ok {
			break
		}
		delete(cfg.Inherited, name(i))
		fds = append(fds, fd)
	}
	good := len(fds) == n
	for _, fd := range fds {
		// The other process may have been killed while a socket was set to fragment. It
		// may also still be receiving: UDP_GRO is left as it is, since without it the
		// trains that wait in the sockets would be read as one datagram each.
		at := boundTo(fd)
		good = good && usable(at) && setDiscovery(fd, at.Addr().Is6(), believing) == 0
	}
	if !good {
		closeAll(fds)
		return nil
	}
	return fds
}

// boundTo returns the address of a UDP socket, or an invalid one if fd is not one.
func boundTo(fd int) netip.AddrPort {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || kind != unix.IPPROTO_UDP {
		return netip.AddrPort{}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
