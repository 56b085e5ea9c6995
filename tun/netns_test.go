package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The tests here need root. Each has a namespace of its own:
//
//	t0 10.9.0.0/24, fd00:9:0::/64 ── kernel forwards ── t1 10.9.1.0/24, fd00:9:1::/64
//
// What is written to the queue of t0 for an address behind t1 is read from t1.

func TestMain(m *testing.M) { netlabtest.Main(m) }

// open opens a device for the duration of the test.
func open(t *testing.T, name string, queues int, mode Switch) *Device {
	t.Helper()
	d, err := Open(Config{Name: name, Queues: queues, Offload: mode, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// pair makes t0 and t1, with one queue each.
func pair(t *testing.T, ns *netlab.Namespace, mode0, mode1 Switch) (t0, t1 *Device) {
	t.Helper()
	return pairOf(t, ns, mode0, mode1, 1)
}

// pairOf makes t0 with one queue and t1 with several.
func pairOf(t *testing.T, ns *netlab.Namespace, mode0, mode1 Switch, queues int) (t0, t1 *Device) {
	t.Helper()
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := ns.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	devices := []*Device{open(t, "t0", 1, mode0), open(t, "t1", queues, mode1)}
	for i, d := range devices {
		link, err := netlink.LinkByName(d.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetIP6AddrGenMode(link, 1); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{fmt.Sprintf("10.9.%d.1/24", i), fmt.Sprintf("fd00:9:%d::1/64", i)} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	return devices[0], devices[1]
}

// packet is a super-packet (or, with size ≥ n, a packet) of n payload bytes from
// behind t0 to behind t1, as a device that asks for segments of size hands it
// over: its checksum is the pseudo header's.
func packet(ipv6, tcp bool, n, size int) (Header, []byte) {
	h := Header{Flags: FlagNeedsCsum}
	proto, transport := byte(unix.IPPROTO_UDP), make([]byte, 8)
	h.CsumOffset, h.GSOType = 6, GSOUDPL4
	if tcp {
		proto, transport = unix.IPPROTO_TCP, make([]byte, 20)
		h.CsumOffset, h.GSOType = 16, GSOTCPv4
		if ipv6 {
			h.GSOType = GSOTCPv6
		}
		transport[12], transport[13] = 5<<4, 0x10
		transport[7] = 1 // sequence number
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(8+n))
	}
	transport[0], transport[2] = 0x9c, 0x9d // ports
	for i := range n {
		transport = append(transport, byte(i*7+i>>8))
	}
	src, dst := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.1.2")
	if ipv6 {
		src, dst = netip.MustParseAddr("fd00:9:0::2"), netip.MustParseAddr("fd00:9:1::2")
	}
	addrs := append(src.AsSlice(), dst.AsSlice()...)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(transport)))
	binary.BigEndian.PutUint16(transport[h.CsumOffset:], sum(addrs, length, []byte{0, proto}))

	var ip []byte
	if ipv6 {
		ip = append([]byte{0x60, 0, 0, 0, byte(len(transport) >> 8), byte(len(transport)), proto, 64}, addrs...)
	} else {
		total := 20 + len(transport)
		ip = append([]byte{0x45, 0, byte(total >> 8), byte(total), 0, 1, 0x40, 0, 64, proto, 0, 0}, addrs...)
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
	}
	h.CsumStart = uint16(len(ip))
	if n > size {
		h.GSOSize, h.HdrLen = uint16(size), uint16(len(ip)+len(transport)-n)
	} else {
		h.GSOType = GSONone
	}
	return h, append(ip, transport...)
}

// sum is the ones' complement sum of RFC 1071 over parts of even length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i := range p {
			s += uint32(p[i]) << (8 * (1 - i%2))
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// write writes a packet in three parts, the header and two of the packet.
func write(q Queue, h Header, pkt []byte) unix.Errno { return q.Write(parts(h, pkt)) }

func parts(h Header, pkt []byte) []unix.Iovec {
	hdr := make([]byte, HeaderLen)
	h.Encode(hdr)
	var iov []unix.Iovec
	for _, part := range [][]byte{hdr, pkt[:30], pkt[30:]} {
		v := unix.Iovec{Base: &part[0]}
		v.SetLen(len(part))
		iov = append(iov, v)
	}
	return iov
}

// read waits for a packet, ignoring those that the kernel itself sends.
func read(t *testing.T, q Queue) (h Header, pkt []byte) {
	t.Helper()
	deadline := time.Now().Add(testkit.Patience)
	b := bytes.Repeat([]byte{0xee}, ReadSize)
	for time.Now().Before(deadline) {
		n, errno := q.Read(b)
		if errno == 0 {
			if ip := b[HeaderLen:n]; ip[0]>>4 == 6 && ip[24] == 0xff {
				continue // the kernel's own multicast reports
			}
			h.Decode(b)
			return h, bytes.Clone(b[HeaderLen:n])
		}
		if errno != unix.EAGAIN {
			t.Fatalf("read: %v", errno)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}, 100); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
	t.Fatalf("nothing to read within %s", testkit.Patience)
	return
}

func TestKernelHasEachFeatureFromItsVersionOn(t *testing.T) {
	for _, f := range Features {
		netlabtest.Inside(t, func(*netlab.Namespace) {
			if err := f.Verify(); err != nil {
				t.Error(err)
			}
			if links, err := netlink.LinkList(); err != nil || len(links) != 1 { // lo
				t.Errorf("%s: the probe has left %v, %v", f.Name, links, err)
			}
		})
	}
}

func TestOffloadDeviceIsGrantedWhatTheKernelHas(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		d := open(t, "t0", 1, Auto)
		if !d.Offload() || !d.Granted.TCP() || !strings.HasPrefix(d.State.Why, "granted: "+d.Granted.String()) {
			t.Errorf("%+v, granted %s", d.State, d.Granted)
		}
		if want := !Kernel().Before(featureUSO.Since); d.Granted.UDP() != want {
			t.Errorf("USO granted: %t; new enough a kernel: %t", d.Granted.UDP(), want)
		}
	})
}

func TestDeviceHasTheQueuesAskedFor(t *testing.T) {
	for _, tt := range []struct {
		mode       Switch
		ask, queue int
	}{{On, 1, 1}, {On, 4, 4}, {Off, 1, 1}, {Off, 4, 1}} {
		netlabtest.Inside(t, func(*netlab.Namespace) {
			d := open(t, "t0", tt.ask, tt.mode)
			if len(d.Queues) != tt.queue {
				t.Errorf("%s: asked for %d queues, got %d", tt.mode, tt.ask, len(d.Queues))
			}
			link, err := netlink.LinkByName("t0")
			if err != nil {
				t.Fatal(err)
			}
			if tun := link.(*netlink.Tuntap); tun.Mode != netlink.TUNTAP_MODE_TUN || !tun.NonPersist {
				t.Errorf("%+v is not a TUN device that disappears with its process", tun)
			}
		})
	}
}

func TestPlainDeviceIsMadeWhereOffloadsAreTurnedOff(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		d := open(t, "t0", 2, Off)
		if d.Offload() || d.Granted != 0 || d.State.Why != "turned off by --tun-offload" {
			t.Errorf("%+v, granted %s", d.State, d.Granted)
		}
	})
}

func TestEmptyQueueReturnsEAGAIN(t *testing.T) {
	for _, mode := range []Switch{On, Off} {
		netlabtest.Inside(t, func(*netlab.Namespace) {
			for _, q := range open(t, "t0", 2, mode).Queues {
				if _, err := q.Read(make([]byte, ReadSize)); err != unix.EAGAIN {
					t.Errorf("offload %s: %v", mode, err)
				}
			}
		})
	}
}

func TestNameInUseIsRefusedWithTheRemedy(t *testing.T) {
	modes := []Switch{On, Off}
	for _, first := range modes {
		for _, second := range modes {
			for _, queues := range []int{1, 2} {
				netlabtest.Inside(t, func(*netlab.Namespace) {
					open(t, "t0", queues, first)
					d, err := Open(Config{Name: "t0", Queues: queues, Offload: second, Logger: slog.New(slog.DiscardHandler)})
					if err == nil {
						d.Close()
						t.Fatalf("%d queues: %s beside %s was opened", queues, second, first)
					}
					if !strings.Contains(err.Error(), "open TUN device t0") || !strings.Contains(err.Error(), "--tun-name") {
						t.Errorf("%d queues: %s beside %s: %v", queues, second, first, err)
					}
					if _, err := netlink.LinkByName("t0"); err != nil {
						t.Errorf("the first device is gone: %v", err)
					}
				})
			}
		}
	}
}

func TestInterfaceOfAnotherKindIsRefusedAndKept(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "t0"
	for _, link := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: attrs},
		&netlink.Veth{LinkAttrs: attrs, PeerName: "t1"},
	} {
		for _, mode := range []Switch{Auto, On, Off} {
			netlabtest.Inside(t, func(*netlab.Namespace) {
				if err := netlink.LinkAdd(link); err != nil {
					t.Fatal(err)
				}
				d, err := Open(Config{Name: "t0", Queues: 1, Offload: mode, Logger: slog.New(slog.DiscardHandler)})
				if err == nil {
					d.Close()
				}
				if err == nil || !strings.Contains(err.Error(), "--tun-name") {
					t.Errorf("%s, offload %s: %v", link.Type(), mode, err)
				}
				if got, err := netlink.LinkByName("t0"); err != nil || got.Type() != link.Type() {
					t.Errorf("afterwards: %v, %v", got, err)
				}
			})
		}
	}
}

func TestCloseRemovesTheDeviceAndItsDescriptors(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		count := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		for _, mode := range []Switch{On, Off} {
			open(t, "warm", 1, mode).Close() // Go's poller opens its own once
			before := count()
			for range 20 {
				d := open(t, "t0", 3, mode)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if _, err := netlink.LinkByName("t0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
					t.Fatalf("offload %s: t0 after Close: %v", mode, err)
				}
			}
			if after := count(); after > before {
				t.Errorf("offload %s: %d descriptors before, %d after", mode, before, after)
			}
		}
	})
}

func TestReadAfterTheDeviceWasDeletedFails(t *testing.T) {
	for _, mode := range []Switch{On, Off} {
		netlabtest.Inside(t, func(*netlab.Namespace) {
			d := open(t, "t0", 1, mode)
			link, err := netlink.LinkByName("t0")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Queues[0].Read(make([]byte, ReadSize)); err != unix.EBADFD {
				t.Errorf("offload %s: read: %v", mode, err)
			}
			h, pkt := packet(false, false, 100, 100)
			if err := write(d.Queues[0], h, pkt); err != unix.EBADFD {
				t.Errorf("offload %s: write: %v", mode, err)
			}
		})
	}
}

// TestSuperPacketCrossesWhole fails if the kernel cuts a super-packet on its way
// from one offload device to another: if one of the directions does not really
// have the offload.
func TestSuperPacketCrossesWhole(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ipv6, tcp bool
	}{{"tcp4", false, true}, {"tcp6", true, true}, {"udp4", false, false}, {"udp6", true, false}} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.tcp && Kernel().Before(featureUSO.Since) {
				return // without USO
			}
			netlabtest.Inside(t, func(ns *netlab.Namespace) {
				t0, t1 := pair(t, ns, On, On)
				const size = 1000
				n := 60000
				if !tt.tcp {
					n = 60 * size // UDP_MAX_SEGMENTS was 64
				}
				h, pkt := packet(tt.ipv6, tt.tcp, n, size)
				if err := write(t0.Queues[0], h, pkt); err != 0 {
					t.Fatalf("write: %v", err)
				}
				got, b := read(t, t1.Queues[0])
				if got.GSOType != h.GSOType || got.GSOSize != size || got.Flags&FlagNeedsCsum == 0 ||
					got.CsumStart != h.CsumStart || got.CsumOffset != h.CsumOffset {
					t.Errorf("wrote %+v, read %+v", h, got)
				}
				if len(b) != len(pkt) || !bytes.Equal(b[h.HdrLen:], pkt[h.HdrLen:]) {
					t.Errorf("wrote %d bytes, read %d, or the payload differs", len(pkt), len(b))
				}
			})
		})
	}
}

func TestPlainDeviceGetsCutPacketsWithChecksums(t *testing.T) {
	for _, tt := range []struct {
		name string
		ipv6 bool
	}{{"tcp4", false}, {"tcp6", true}} {
		t.Run(tt.name, func(t *testing.T) {
			netlabtest.Inside(t, func(ns *netlab.Namespace) {
				t0, t1 := pair(t, ns, On, Off)
				const size, count = 1000, 5
				h, pkt := packet(tt.ipv6, true, count*size, size)
				if err := write(t0.Queues[0], h, pkt); err != 0 {
					t.Fatalf("write: %v", err)
				}
				for i := range count {
					got, b := read(t, t1.Queues[0])
					if got != (Header{}) {
						t.Fatalf("packet %d has the header %+v", i, got)
					}
					want := pkt[int(h.HdrLen)+i*size:][:size]
					if !bytes.Equal(b[h.HdrLen:], want) {
						t.Fatalf("packet %d has %d bytes, or another payload", i, len(b))
					}
					ip := int(h.CsumStart)
					addrs := b[12:20]
					if tt.ipv6 {
						addrs = b[8:40]
					}
					if s := sum(addrs, []byte{byte((len(b) - ip) >> 8), byte(len(b) - ip), 0, unix.IPPROTO_TCP}, b[ip:]); s != 0xffff {
						t.Errorf("packet %d: checksum wrong", i)
					}
				}
			})
		})
	}
}

func TestPlainDeviceWritesPacketsWithoutTheHeader(t *testing.T) {
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		t0, t1 := pair(t, ns, Off, Off)
		_, pkt := packet(false, false, 500, 500)
		binary.BigEndian.PutUint16(pkt[26:], 0) // no UDP checksum
		if err := write(t0.Queues[0], Header{}, pkt); err != 0 {
			t.Fatalf("write: %v", err)
		}
		h, b := read(t, t1.Queues[0])
		if h != (Header{}) || len(b) != len(pkt) || !bytes.Equal(b[20:], pkt[20:]) {
			t.Errorf("wrote % x\nread %+v, % x", pkt, h, b)
		}
	})
}

func TestSteerMovesTheOtherDirectionOfAFlowToItsQueue(t *testing.T) {
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		t0, t1 := pairOf(t, ns, On, On, 4)
		for _, ipv6 := range []bool{false, true} {
			h, there := packet(ipv6, true, 100, 100)
			addrs, n := 12, 4
			if ipv6 {
				addrs, n = 8, 16
			}
			back, ports := bytes.Clone(there), int(h.CsumStart)
			copy(back[addrs:], there[addrs+n:addrs+2*n])
			copy(back[addrs+n:], there[addrs:addrs+n])
			copy(back[ports:], there[ports+2:ports+4])
			copy(back[ports+2:], there[ports:ports+2])
			for _, i := range []int{2, 0, 3, 1} {
				if errno := t1.Queues[i].Steer(parts(h, back)); errno != 0 {
					t.Fatalf("write to queue %d: %v", i, errno)
				}
				if errno := write(t0.Queues[0], h, there); errno != 0 {
					t.Fatalf("write: %v", errno)
				}
				if _, got := read(t, t1.Queues[i]); !bytes.Equal(got[ports:ports+4], there[ports:ports+4]) {
					t.Errorf("IPv6 %t: % x arrived at queue %d", ipv6, got, i)
				}
			}
		}
	})
}

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	for _, mode := range []Switch{On, Off} {
		netlabtest.Inside(t, func(ns *netlab.Namespace) {
			t0, t1 := pair(t, ns, mode, mode)
			_, pkt := packet(false, false, 500, 500)
			binary.BigEndian.PutUint16(pkt[26:], 0)
			hdr, b := make([]byte, HeaderLen), make([]byte, ReadSize)
			iov := []unix.Iovec{{Base: &hdr[0]}, {Base: &pkt[0]}}
			iov[0].SetLen(len(hdr))
			iov[1].SetLen(len(pkt))
			wq, rq := t0.Queues[0], t1.Queues[0]
			if n := testing.AllocsPerRun(100, func() {
				if err := wq.Write(iov); err != 0 {
					t.Fatal(err)
				}
				for {
					if _, err := rq.Read(b); err == 0 {
						break
					} else if err != unix.EAGAIN {
						t.Fatal(err)
					}
				}
			}); n != 0 {
				t.Errorf("offload %s: %v allocations a packet", mode, n)
			}
		})
	}
}
