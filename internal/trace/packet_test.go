package trace

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// accepted runs the filter of p as the kernel does.
func accepted(t *testing.T, p *Packet, m Mark, overhead int, b []byte) bool {
	t.Helper()
	var raw []bpf.RawInstruction
	for _, i := range p.filter(m, overhead) {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions that are not known")
	}
	vm, err := bpf.NewVM(program)
	testkit.Must(t, err)
	n, err := vm.Run(b)
	testkit.Must(t, err)
	return n > 0
}

// back returns what a far end answers to a probe with the transport header answer.
func back(p *Packet, probe []byte, answer func(t []byte)) []byte {
	b := append([]byte(nil), probe...)
	from, to, header := 12, 16, 20
	if p.To.Is6() {
		from, to, header = 8, 24, 40
	}
	copy(b[from:], p.To.AsSlice())
	copy(b[to:], p.From.AsSlice())
	answer(b[header:])
	return b
}

func TestProbesAndAnswersAreRecognizedInAndOutOfTunnels(t *testing.T) {
	const mark = Mark(0xcafe1234)
	for _, addrs := range [][2]string{{"10.5.1.2", "10.5.2.2"}, {"fd00:10:5:1::2", "fd00:10:5:2::2"}} {
		for _, proto := range []string{ICMP, TCP, UDP} {
			p := &Packet{netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1]), proto, 80}
			probe := p.probe(mark, 0)
			tunnel := func(over int, b []byte) []byte {
				outer := make([]byte, over)
				outer[0], outer[9] = 4<<4|5, unix.IPPROTO_UDP
				if over == 70 {
					outer[0], outer[6] = 6<<4, unix.IPPROTO_UDP
				}
				return append(outer, b...)
			}
			answer := back(p, probe, func(b []byte) {
				switch proto {
				case TCP:
					binary.BigEndian.PutUint32(b[4:], 0x01020304)
					binary.BigEndian.PutUint32(b[8:], uint32(mark)+1)
				case ICMP:
					b[0] = 0
				}
			})
			quote := back(p, append(probe[:len(probe):len(probe)], make([]byte, 8+len(probe))...), func(b []byte) {
				clear(b)
				if b[0], b[1] = 3, 3; p.To.Is6() {
					b[0], b[1] = 1, 4
				}
				copy(b[8:], probe)
			})
			if p.To.Is6() {
				quote[6] = unix.IPPROTO_ICMPV6
			} else {
				quote[9] = unix.IPPROTO_ICMP
			}
			for _, over := range []int{0, 28, 50, 70} {
				for _, tt := range []struct {
					what   string
					b      []byte
					answer bool
				}{{"probe", probe, false}, {"answer", answer, true}, {"ICMP error", quote, true}} {
					if tt.what == "ICMP error" && proto != UDP {
						continue
					}
					for _, outer := range []bool{false, over > 0} {
						b := tt.b
						if outer {
							b = tunnel(over, b)
						}
						at, full, ok := p.find(b, mark, over)
						if !ok || full || at.outer != outer || at.answer != tt.answer || !accepted(t, p, mark, over, b) {
							t.Errorf("%s, %s with %d bytes before, outer %t: %+v, %t, passes the filter %t", p, tt.what, over, outer, at, ok, accepted(t, p, mark, over, b))
						}
					}
				}
				router, host := append([]byte(nil), quote...), append([]byte(nil), quote...)
				router[12] ^= 0x10                  // in its source address
				host[echo.IPHeaderLen(p.To)+1] ^= 2 // another code
				for what, b := range map[string][]byte{"a router": router, "twilld": host} {
					if _, _, ok := p.find(b, mark, over); ok {
						t.Errorf("%s: the ICMP error of %s is taken for an answer", p, what)
					}
				}
				other := p.probe(mark+2, 0)
				if _, _, ok := p.find(other, mark, over); ok || accepted(t, p, mark, over, other) || accepted(t, p, mark, over, nil) {
					t.Errorf("%s: a packet with another mark is taken for a probe", p)
				}
			}
		}
	}
}

func TestFullSizeProbesHaveAMarkOfTheirOwn(t *testing.T) {
	p := &Packet{podA, podB, UDP, 9}
	b := p.probe(0xcafe1234|1, 1472)
	if at, full, ok := p.find(b, 0xcafe1234, 28); len(b) != 1472 || !full || !ok || at.answer {
		t.Errorf("%d bytes: %+v, full %t, found %t", len(b), at, full, ok)
	}
}

func TestProtocolsAreReadFromTheCommandLine(t *testing.T) {
	for words, want := range map[string]Packet{
		"": {Proto: ICMP}, "icmp": {Proto: ICMP}, "tcp 443": {Proto: TCP, Port: 443}, "udp 53": {Proto: UDP, Port: 53},
	} {
		var got Packet
		if err := got.ParseProto(strings.Fields(words)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", words, got, err)
		}
	}
	for words, want := range map[string]string{
		"sctp 5": "want icmp, tcp PORT or udp PORT", "tcp": "want one port after tcp", "udp 0": "want 1 to 65535", "tcp x": "want 1 to 65535", "icmp 8": "want icmp, tcp PORT or udp PORT",
	} {
		var p Packet
		if err := p.ParseProto(strings.Fields(words)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", words, err, want)
		}
	}
}
