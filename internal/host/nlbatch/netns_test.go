package nlbatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// The tests here need root. Each has a namespace of its own with two VXLAN
// devices as flannel's: flannel.1 over IPv4, flannel-v6.1 over IPv6. Peer i is
//
//	10.<i>.0/24      via 10.<i>.0,      02:00:…:<i>, at 172.16.<i>
//	fd00:10:<i>::/64 via fd00:10:<i>::, 02:00:…:<i>, at fd00:172:<i>::1

func TestMain(m *testing.M) { netlabtest.Main(m) }

// devices are the indices of the two VXLAN devices. They are the same in each
// namespace.
type devices struct{ v4, v6 int }

// inside runs f in a namespace with the devices.
func inside(t testing.TB, f func(d devices)) {
	t.Helper()
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		f(devices{v4: vxlan(t, ns, "flannel.1", "172.31.9.11", 1), v6: vxlan(t, ns, "flannel-v6.1", "fd00:172:31:9::11", 2)})
	})
}

func vxlan(t testing.TB, ns *netlab.Namespace, name, local string, vni int) int {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: net.ParseIP(local), Port: 8472}
	if err := errors.Join(netlink.LinkAdd(link), ns.Sysctl("net/ipv6/conf/"+name+"/addr_gen_mode", "1"), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

func dial(t testing.TB) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// do sends requests over a socket that does not fail.
func do(t testing.TB, c *Conn, reqs []Request) []error {
	t.Helper()
	errs, err := c.Do(reqs)
	if err != nil {
		t.Fatal(err)
	}
	if len(errs) != len(reqs) {
		t.Fatalf("%d answers to %d requests", len(errs), len(reqs))
	}
	return errs
}

// all sends requests that must succeed.
func all(t testing.TB, c *Conn, reqs []Request) {
	t.Helper()
	for i, err := range do(t, c, reqs) {
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

// peer is what a node knows about another.
type peer struct {
	route Route
	neigh Neigh
	fdb   FDB
}

func (p peer) replace() []Request {
	return []Request{NeighReplace(p.neigh), FDBReplace(p.fdb), RouteReplace(p.route)}
}

func (p peer) remove() []Request {
	return []Request{RouteDel(p.route), FDBDel(p.fdb), NeighDel(p.neigh)}
}

func (d devices) peer4(i int) peer {
	hi, lo := byte(i>>8), byte(i)
	subnet := netip.AddrFrom4([4]byte{10, hi, lo, 0})
	return peerOf(d.v4, netip.PrefixFrom(subnet, 24), MAC{2, 0, 4, 0, hi, lo}, netip.AddrFrom4([4]byte{172, 16, hi, lo}))
}

func (d devices) peer6(i int) peer {
	hi, lo := byte(i>>8), byte(i)
	subnet := netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: hi, 5: lo})
	return peerOf(d.v6, netip.PrefixFrom(subnet, 64), MAC{2, 0, 6, 0, hi, lo}, netip.AddrFrom16([16]byte{0: 0xfd, 2: 1, 3: 0x72, 4: hi, 5: lo, 15: 1}))
}

func peerOf(dev int, subnet netip.Prefix, mac MAC, public netip.Addr) peer {
	return peer{
		Route{Dst: subnet, Via: subnet.Addr(), Dev: dev, OnLink: true},
		Neigh{Dev: dev, IP: subnet.Addr(), MAC: mac},
		FDB{Dev: dev, MAC: mac, Dst: public},
	}
}

// stock programs the peer by the calls of flannel v0.28.9: AddARP, AddFDB of
// pkg/backend/vxlan/device.go, RouteReplace of vxlan_network.go.
func (p peer) stock() error {
	route := &netlink.Route{
		LinkIndex: p.route.Dev, Scope: netlink.SCOPE_UNIVERSE,
		Dst: netlab.IPNet(p.route.Dst),
		Gw:  p.route.Via.AsSlice(),
	}
	route.SetFlag(unix.RTNH_F_ONLINK)
	return errors.Join(
		netlink.NeighSet(&netlink.Neigh{
			LinkIndex: p.neigh.Dev, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
			IP: p.neigh.IP.AsSlice(), HardwareAddr: p.neigh.MAC[:],
		}),
		netlink.NeighSet(&netlink.Neigh{
			LinkIndex: p.fdb.Dev, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			IP: p.fdb.Dst.AsSlice(), HardwareAddr: p.fdb.MAC[:],
		}),
		netlink.RouteReplace(route))
}

// tables dumps the routes, neighbours and FDB entries as the kernel writes them,
// but for ages and use counts.
func tables(t testing.TB) (dump []string) {
	t.Helper()
	for _, table := range []struct {
		name         string
		kind         int
		family       byte
		header, ages int
	}{
		{"route4", unix.RTM_GETROUTE, unix.AF_INET, unix.SizeofRtMsg, unix.RTA_CACHEINFO},
		{"route6", unix.RTM_GETROUTE, unix.AF_INET6, unix.SizeofRtMsg, unix.RTA_CACHEINFO},
		{"neigh4", unix.RTM_GETNEIGH, unix.AF_INET, unix.SizeofNdMsg, unix.NDA_CACHEINFO},
		{"neigh6", unix.RTM_GETNEIGH, unix.AF_INET6, unix.SizeofNdMsg, unix.NDA_CACHEINFO},
		{"fdb", unix.RTM_GETNEIGH, unix.AF_BRIDGE, unix.SizeofNdMsg, unix.NDA_CACHEINFO},
	} {
		req := nl.NewNetlinkRequest(table.kind, unix.NLM_F_DUMP)
		req.AddRawData(append([]byte{table.family}, make([]byte, table.header-1)...))
		messages, err := req.Execute(unix.NETLINK_ROUTE, 0)
		if err != nil {
			t.Fatalf("dump %s: %v", table.name, err)
		}
		for _, m := range messages {
			line := fmt.Sprintf("%s %x", table.name, m[:table.header])
			attrs, err := nl.ParseRouteAttr(m[table.header:])
			if err != nil {
				t.Fatalf("dump %s: %v", table.name, err)
			}
			for _, a := range attrs {
				if int(a.Attr.Type) != table.ages {
					line += fmt.Sprintf(" %d:%x", a.Attr.Type, a.Value)
				}
			}
			dump = append(dump, line)
		}
	}
	slices.Sort(dump)
	return dump
}

// missing returns what of a is not in b.
func missing(a, b []string) (m []string) {
	for _, line := range a {
		if !slices.Contains(b, line) {
			m = append(m, line)
		}
	}
	return m
}

func TestEntriesAreThoseOfStockFlannel(t *testing.T) {
	var before, stock, ours []string
	inside(t, func(d devices) {
		before = tables(t)
		for i := range 3 {
			if err := errors.Join(d.peer4(i).stock(), d.peer6(i).stock()); err != nil {
				t.Fatal(err)
			}
		}
		stock = tables(t)
	})
	if n := len(missing(stock, before)); n != 2*3*3 {
		t.Fatalf("stock flannel's calls made %d entries, want 18:\n%s", n, strings.Join(missing(stock, before), "\n"))
	}
	inside(t, func(d devices) {
		var add, remove []Request
		for i := range 3 {
			add = append(add, slices.Concat(d.peer4(i).replace(), d.peer6(i).replace())...)
			remove = append(remove, slices.Concat(d.peer4(i).remove(), d.peer6(i).remove())...)
		}
		c := dial(t)
		for range 2 { // twice: each in its own place
			all(t, c, add)
			ours = tables(t)
			if !slices.Equal(ours, stock) {
				t.Errorf("only stock flannel:\n%s\nonly here:\n%s",
					strings.Join(missing(stock, ours), "\n"), strings.Join(missing(ours, stock), "\n"))
			}
		}
		all(t, c, remove)
		if after := tables(t); !slices.Equal(after, before) {
			t.Errorf("left after all was deleted:\n%s", strings.Join(missing(after, before), "\n"))
		}
	})
}

func TestEachRequestHasItsOwnAnswer(t *testing.T) {
	inside(t, func(d devices) {
		c := dial(t)
		p, other := d.peer4(1), d.peer6(1)
		apart := p.route
		apart.OnLink = false
		nowhere := p.neigh
		nowhere.Dev = 4711
		steps := []struct {
			name string
			req  Request
			want error
		}{
			{"add", RouteAdd(p.route), nil},
			{"add again", RouteAdd(p.route), unix.EEXIST},
			{"no such device", NeighReplace(nowhere), unix.ENODEV},
			{"neighbour", NeighReplace(p.neigh), nil},
			{"no route to the gateway", RouteReplace(apart), unix.ENETUNREACH},
			{"FDB entry of the other family", FDBReplace(FDB{Dev: d.v4, MAC: other.fdb.MAC, Dst: other.fdb.Dst}), unix.EAFNOSUPPORT},
			{"delete what is not there", RouteDel(other.route), unix.ESRCH},
			{"delete a neighbour that is not there", NeighDel(other.neigh), unix.ENOENT},
			{"delete an FDB entry that is not there", FDBDel(p.fdb), unix.ENOENT},
			{"delete", RouteDel(p.route), nil},
			{"delete again", RouteDel(p.route), unix.ESRCH},
		}
		var reqs []Request
		for _, s := range steps {
			reqs = append(reqs, s.req)
		}
		// In one datagram, and split at every place.
		for size := 1; size <= len(reqs); size++ {
			c.requests = size
			for i, err := range do(t, c, reqs) {
				if !errors.Is(err, steps[i].want) {
					t.Errorf("%d to a datagram: %s: %v, want %v", size, steps[i].name, err, steps[i].want)
				}
			}
			all(t, c, []Request{NeighDel(p.neigh)})
		}
	})
}

func TestRefusalSaysWhatTheKernelSays(t *testing.T) {
	inside(t, func(d devices) {
		r := d.peer4(1).route
		r.OnLink = false
		err := do(t, dial(t), []Request{RouteReplace(r)})[0]
		if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "Nexthop has invalid gateway") {
			t.Errorf("%v", err)
		}
	})
}

func TestInvalidRequestsAreNotSent(t *testing.T) {
	inside(t, func(d devices) {
		p := d.peer4(1)
		before := tables(t)
		wrong := []struct {
			req  Request
			want string
		}{
			{RouteReplace(Route{}), "replace route invalid Prefix: no destination"},
			{RouteAdd(Route{Dst: p.route.Dst}), "add route 10.0.1.0/24: no device"},
			{RouteAdd(Route{Dst: p.route.Dst, Dev: -1}), "no device"},
			{RouteReplace(Route{Dst: p.route.Dst, Via: d.peer6(1).route.Via, Dev: 1}), "gateway fd00:10:1:: and destination"},
			{RouteDel(Route{Dev: d.v4}), "delete route invalid Prefix dev"},
			{NeighReplace(Neigh{IP: p.neigh.IP, MAC: p.neigh.MAC}), "replace neighbour 10.0.1.0 dev 0 lladdr 02:00:04:00:00:01: no device"},
			{NeighReplace(Neigh{Dev: d.v4, MAC: p.neigh.MAC}), "no IP address"},
			{NeighReplace(Neigh{Dev: d.v4, IP: p.neigh.IP}), "no MAC address"},
			{FDBReplace(FDB{Dev: d.v4, Dst: p.fdb.Dst}), "no MAC address"},
			{FDBDel(FDB{Dev: d.v4, MAC: p.fdb.MAC}), "delete FDB entry 02:00:04:00:00:01 dev"},
		}
		var reqs []Request
		for _, w := range wrong {
			reqs = append(reqs, w.req, NeighReplace(p.neigh))
		}
		for _, size := range []int{1, 2, len(reqs)} {
			c := dial(t)
			c.requests = size
			errs := do(t, c, reqs)
			for i, w := range wrong {
				if err := errs[2*i]; err == nil || !strings.Contains(err.Error(), w.want) {
					t.Errorf("%v\nlacks %q", err, w.want)
				}
				if err := errs[2*i+1]; err != nil {
					t.Errorf("the right request after %q: %v", w.want, err)
				}
			}
			all(t, c, []Request{NeighDel(p.neigh)})
		}
		if after := tables(t); !slices.Equal(after, before) {
			t.Errorf("left:\n%s", strings.Join(missing(after, before), "\n"))
		}
		if errs := do(t, dial(t), nil); len(errs) != 0 {
			t.Errorf("answers to no request: %v", errs)
		}
	})
}

// TestLostAnswersAreReported: a receive buffer that is too small for them loses the
// later ones. The requests are carried out all the same.
func TestLostAnswersAreReported(t *testing.T) {
	inside(t, func(d devices) {
		c := dial(t)
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
			t.Fatal(err)
		}
		c.requests = 100
		var reqs []Request
		for i := range 100 {
			reqs = append(reqs, NeighReplace(d.peer4(i).neigh))
		}
		errs := do(t, c, reqs)
		lost := 0
		for i, err := range errs {
			if err != nil && !errors.Is(err, ErrUnanswered) {
				t.Errorf("request %d: %v", i, err)
			}
			if err != nil {
				lost++
			}
		}
		if errs[0] != nil || lost == 0 || lost == len(errs) {
			t.Errorf("%d of %d answers lost, the first: %v", lost, len(errs), errs[0])
		}
		if n := len(neighbours(t, d.v4)); n != len(reqs) {
			t.Errorf("%d neighbours of %d", n, len(reqs))
		}
		// The socket still works.
		all(t, c, reqs[:1])
	})
}

// TestAnswersToOthersAreNotTaken: what another process sends to the socket, and
// late answers, are skipped.
func TestAnswersToOthersAreNotTaken(t *testing.T) {
	inside(t, func(d devices) {
		c := dial(t)
		forger, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(forger)
		if err := unix.Sendto(forger, refused(c.seq+1, unix.EPERM), 0,
			&unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: c.Port()}); err != nil {
			t.Fatal(err)
		}
		all(t, c, []Request{NeighReplace(d.peer4(1).neigh)})

		// An answer from the kernel that was not read.
		c.pack([]Request{RouteDel(d.peer4(2).route)}, make([]error, 1))
		if err := c.send(); err != nil {
			t.Fatal(err)
		}
		all(t, c, []Request{NeighReplace(d.peer4(2).neigh)})
	})
}

// refused is the kernel's answer to a request that it refuses.
func refused(seq uint32, errno unix.Errno) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 36)
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_CAPPED)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, make([]byte, 4)...)
	b = binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	return append(b, make([]byte, unix.SizeofNlMsghdr)...)
}

func TestClosedSocketFailsAllThatWasNotSent(t *testing.T) {
	inside(t, func(d devices) {
		c := dial(t)
		fd := c.fd
		c.fd = -1
		c.requests = 1
		errs, err := c.Do([]Request{NeighReplace(d.peer4(1).neigh), NeighReplace(d.peer4(2).neigh)})
		c.fd = fd
		if !errors.Is(err, unix.EBADF) || len(errs) != 2 || errs[0] != err || errs[1] != err {
			t.Errorf("%v, %v", errs, err)
		}
	})
}

func neighbours(t testing.TB, dev int) []netlink.Neigh {
	t.Helper()
	list, err := netlink.NeighList(dev, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
