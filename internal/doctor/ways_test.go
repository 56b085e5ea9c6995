package doctor

import (
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

func TestWayOfAPeerSaysPortAndSize(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fd00::2")
	for _, tt := range []struct {
		config, asked string
		way           backend.Kind
		peer          netip.Addr
		port, outer   int // outer of an inner packet of 1400 bytes
	}{
		{`{"Type": "udp"}`, "", kindOf(""), v4, 8285, 1428},
		{`{"Type": "udp"}`, "", "udp", v6, 8285, 1448},
		{`{"Type": "udp", "Port": 7890}`, "", "udp", v4, 7890, 1428},
		{`{"Type": "vxlan"}`, "", "vxlan", v4, 8472, 1450},
		{`{"Type": "vxlan", "Port": 4789}`, "", "vxlan", v6, 4789, 1470},
		// The port in the config is udp's.
		{`{"Type": "udp", "Port": 7890}`, "vxlan", "vxlan", v4, 8472, 1450},
		{`{"Type": "host-gw"}`, "", "host-gw", v4, 0, 1400},
	} {
		c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": ` + tt.config + `}`))
		if err != nil {
			t.Fatal(err)
		}
		x := &examination{Node: Node{Config: c, Daemon: &status.Document{Backend: tt.asked}}}
		p := path{subnet, tt.peer, tt.way, x.portOf(tt.way)}
		if p.port != tt.port || p.outerSize(1400) != tt.outer {
			t.Errorf("%+v: port %d and %d bytes", tt, p.port, p.outerSize(1400))
		}
	}
}
