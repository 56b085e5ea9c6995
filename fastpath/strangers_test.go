package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/tun"
)

// decide runs a classic BPF program on a packet from src and returns its result.
func decide(t testing.TB, program []unix.SockFilter, src netip.Addr) uint32 {
	t.Helper()
	packet := make([]byte, 60)
	copy(packet[12:], src.AsSlice())
	if src.Is6() {
		copy(packet[8:], src.AsSlice())
	}
	var a, x uint32
	for pc := 0; pc < len(program); pc++ {
		switch i := program[pc]; i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.BigEndian.Uint32(packet[i.K-networkHeader:])
		case unix.BPF_LDX | unix.BPF_IMM:
			x = i.K
		case unix.BPF_MISC | unix.BPF_TAX:
			x = a
		case unix.BPF_ALU | 0xa0 | unix.BPF_X:
			a ^= x
		case unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K:
			a *= i.K
		case unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K:
			a >>= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			pc += int(branch(i, a == i.K))
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			pc += int(branch(i, a >= i.K))
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.Code)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

func branch(i unix.SockFilter, taken bool) uint8 {
	if taken {
		return i.Jt
	}
	return i.Jf
}

// spread returns n addresses of a family, step apart.
func spread(ipv6 bool, n int, step uint32) (all []netip.Addr) {
	for i := range uint32(n) {
		b := [4]byte{}
		binary.BigEndian.PutUint32(b[:], 0x7ffff000+i*step) // on both sides of the sign
		a := netip.AddrFrom4(b)
		if ipv6 {
			b16 := netip.MustParseAddr("2001:db8::").As16()
			copy(b16[4+i%3*4:], b[:])
			b16[15] |= 1
			a = netip.AddrFrom16(b16)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func TestStrangerProgramAdmitsEveryPeerAndNobodyElse(t *testing.T) {
	const refuse, admit = 7, 99
	seed := [4]uint32{newSeed(), newSeed(), newSeed(), newSeed()}
	for _, ipv6 := range []bool{false, true} {
		for _, n := range []int{1, 2, 8, 9, 17, 100, 1000} {
			t.Run(fmt.Sprintf("ipv6 %t, %d peers", ipv6, n), func(t *testing.T) {
				all := spread(ipv6, 2*n, 7)
				var peers, others []netip.Addr
				for i, a := range all {
					if i%2 == 0 {
						peers = append(peers, a)
					} else {
						others = append(others, a)
					}
				}
				program, exact := admitting(peers, seed, keysAtMost, refuse)
				program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: admit})
				for _, a := range peers {
					if got := decide(t, program, a); got != admit {
						t.Fatalf("peer %s is refused (%d)", a, got)
					}
				}
				admitted := 0
				for _, a := range others {
					if decide(t, program, a) != refuse {
						admitted++
					}
				}
				// An IPv6 address may have the hash of another.
				if exact != !ipv6 || exact && admitted > 0 || admitted > 2 {
					t.Errorf("exact: %t; %d of %d strangers are admitted", exact, admitted, len(others))
				}
			})
		}
	}
}

// A cluster that is larger than a program may be is filtered by ranges.
func TestStrangerProgramOfManyPeersIsSmallAndAdmitsThemAll(t *testing.T) {
	const refuse, admit = 7, 99
	peers := spread(false, 5000, 1)
	program, exact := admitting(peers, [4]uint32{}, keysAtLeast, refuse)
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: admit})
	if exact || len(program) > 200 {
		t.Errorf("exact: %t, %d instructions", exact, len(program))
	}
	for _, a := range peers {
		if decide(t, program, a) != admit {
			t.Fatalf("peer %s is refused", a)
		}
	}
	for _, a := range []string{"192.0.2.1", "10.0.0.1", "127.254.0.0"} {
		if decide(t, program, netip.MustParseAddr(a)) != refuse {
			t.Errorf("%s is admitted", a)
		}
	}
}

// filtered opens n sockets on one port of addr, with a filter of strangers.
func filtered(t *testing.T, addr string, n int) (*strangers, []int) {
	t.Helper()
	fds, local := steered(t, addr, n)
	s, err := openStrangers(fds, local, -1, !tun.Kernel().Before(groForwarded))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s, fds
}

// sendFrom sends a datagram to the sockets of s from an address of this host.
func sendFrom(t *testing.T, s *strangers, src netip.Addr) {
	t.Helper()
	fd, err := openSocket(netip.AddrPortFrom(src, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("packet"), 0, sockaddr(s.local)); err != nil {
		t.Fatal(err)
	}
}

func peersAt(addrs ...netip.Addr) (all []*Peer) {
	for _, a := range addrs {
		all = append(all, NewPeer(nil, netip.AddrPortFrom(a, 8285)))
	}
	return all
}

func TestKernelDropsAndCountsWhatStrangersSend(t *testing.T) {
	for _, tt := range []struct{ local, peer, stranger string }{
		{"127.0.0.1", "127.0.0.2", "127.0.0.3"},
		{"::1", "2001:db8::2", "2001:db8::3"},
	} {
		for _, n := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s, %d sockets", tt.local, n), func(t *testing.T) {
				netlabtest.Inside(t, func(*netlab.Namespace) {
					addAddr(t, "lo", "2001:db8::2/128")
					addAddr(t, "lo", "2001:db8::3/128")
					kernelDropsStrangers(t, tt.local, netip.MustParseAddr(tt.peer), netip.MustParseAddr(tt.stranger), n)
				})
			})
		}
	}
}

func kernelDropsStrangers(t *testing.T, local string, peer, stranger netip.Addr, n int) {
	s, fds := filtered(t, local, n)
	arrives := func(from netip.Addr) {
		t.Helper()
		for range 20 { // from ports that lead to any of the sockets
			sendFrom(t, s, from)
			cameIn(t, fds)
		}
		if n := s.dropped(); n != 0 {
			t.Errorf("%d messages from %s were dropped", n, from)
		}
	}
	vanishes := func(from netip.Addr) {
		t.Helper()
		for range 20 {
			sendFrom(t, s, from)
		}
		if n := s.dropped(); n != 20 {
			t.Errorf("%d messages from %s were counted, want 20", n, from)
		}
		arrives(peer) // so nothing has come before
	}
	arrives(stranger) // there are no peers yet
	testkit.Must(t, s.set(peersAt(peer)))
	arrives(peer)
	vanishes(stranger)
	testkit.Must(t, s.set(peersAt(peer, stranger)))
	arrives(stranger)
	testkit.Must(t, s.set(peersAt(peer)))
	vanishes(stranger)
	// Another process has replaced the program.
	testkit.Must(t, steer(fds, s.local))
	arrives(stranger)
	s.renew()
	vanishes(stranger)
}

// The kernel bounds the size of a program by net.core.optmem_max.
func TestAnyNumberOfPeersCanBeFiltered(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		s, fds := filtered(t, "127.0.0.1", 2)
		peers := spread(false, 20_000, 3)
		last := netip.MustParseAddr("127.0.0.9")
		testkit.Must(t, s.set(peersAt(append(peers, last)...)))
		if granted, err := s.state(); err != nil || granted != "granted: addresses of 20001 peers, in blocks" {
			t.Errorf("%q, %v", granted, err)
		}
		sendFrom(t, s, last)
		cameIn(t, fds)
		sendFrom(t, s, netip.MustParseAddr("127.100.0.1"))
		if n := s.dropped(); n != 1 {
			t.Errorf("%d messages dropped, want one", n)
		}
	})
}

func TestFilterOfAnEarlierRunIsTakenOver(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		s, fds := filtered(t, "127.0.0.1", 2)
		peer, stranger := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
		testkit.Must(t, s.set(peersAt(peer)))
		sendFrom(t, s, stranger)
		copied, err := unix.Dup(s.sink)
		testkit.Must(t, err, s.close())
		next, err := openStrangers(fds, s.local, copied, true)
		testkit.Must(t, err)
		defer next.close()
		testkit.Must(t, next.set(peersAt(peer)))
		sendFrom(t, next, peer)
		cameIn(t, fds)
		sendFrom(t, next, stranger)
		if n := next.dropped(); n != 1 {
			t.Errorf("%d messages dropped, want that of this run alone", n)
		}
	})
}

func TestStrangersAreFilteredOnlyByTheStrictCheck(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		if err := probeSteer(); errors.Is(err, unix.ENOPROTOOPT) { // qemu's user mode emulation
			t.Skip(err)
		}
		d := device(t, 1, tun.Auto)
		for mode, want := range map[SourceCheck]bool{CheckStrict: true, CheckInner: false, CheckOff: false} {
			cfg := config(d, "127.0.0.1:8285")
			cfg.SourceCheck = mode
			e := newEngine(t, cfg)
			i := slices.IndexFunc(e.Offloads(), func(o tun.Offload) bool { return o.Name == strangerFilter })
			if got := e.Offloads()[i]; got.InForce != want {
				t.Errorf("--source-check=%s: %+v", mode, got)
			}
			testkit.Must(t, e.Close())
			cfg.StrangerFilter = tun.On
			e, err := New(cfg)
			if (err == nil) != want {
				t.Errorf("--source-check=%s --stranger-filter=on: %v", mode, err)
			}
			if err == nil {
				testkit.Must(t, e.Close())
			}
		}
	})
}
