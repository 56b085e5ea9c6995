package trace

import (
	"encoding/json"
	"io"
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
)

// FuzzFind: any packet may arrive on an interface while a tap listens.
func FuzzFind(f *testing.F) {
	p4 := Packet{From: netip.MustParseAddr("10.5.1.2"), To: netip.MustParseAddr("10.5.2.2"), Proto: UDP, Port: 53}
	p6 := Packet{From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"), Proto: ICMP}
	const mark = Mark(0x12345678)
	f.Add(p4.probe(mark, 0), UDP, false, byte(28))
	f.Add(p6.probe(mark, 0), ICMP, true, byte(70))
	f.Fuzz(func(t *testing.T, b []byte, proto string, ipv6 bool, overhead byte) {
		p := p4
		if ipv6 {
			p = p6
		}
		p.Proto = proto
		if at, _, ok := p.find(b, mark, int(overhead)); ok && at.offset+4 > len(b) {
			t.Errorf("found at %d of %d bytes", at.offset, len(b))
		}
	})
}

// FuzzPart: the other node may answer anything.
func FuzzPart(f *testing.F) {
	f.Add([]byte(`{"steps":[{"step":"arrive","level":"ok","text":"x","proof":{}}],"seen":[{"device":"eth0","packets":3}],"counters":[{"kind":"rule","packets":9}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var other Part
		if json.Unmarshal(text, &other) != nil {
			return
		}
		for _, sights := range [][]Sight{nil, {{Answer: true, Count: 1}}} {
			r := &Report{
				Packet: Packet{From: netip.MustParseAddr("10.5.1.2"), To: netip.MustParseAddr("10.5.2.2"), Proto: UDP, Port: 53},
				From:   netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("192.0.2.2"), Receiver: &other, Sent: Sent{Small: 3},
			}
			r.Sender.Steps = []Step{{Name: "route", Level: doctor.OK, Proof: &Proof{Devices: []string{"eth0"}, Out: true}}}
			r.Sender.Back = []Step{{Name: "back", Level: doctor.OK, Proof: &Proof{Answer: true}}}
			r.Sender.Sights = sights
			r.Conclude()
			if err := r.WritePage(io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}
