package bench

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func TestWitnessDescribesOnlyPodPacketsInsideUDP(t *testing.T) {
	w := &witness{from: netip.MustParseAddr("10.5.1.2"), to: netip.MustParseAddr("10.5.2.2")}
	// ICMP echo of 28 bytes inside UDP 8285 → 8285.
	const (
		inner = "4500001c00000000400100000a0501020a050202" + "0800000000000000"
		udp   = "205d205d00240000"
		outer = "450000380000000040110000ac1f090bac1f090c"
	)
	const packet = outer + udp + inner
	for _, c := range []struct{ name, packet, want string }{
		{"a packet of a pod", packet, "56 bytes, UDP 172.31.9.11:8285 → 172.31.9.12:8285, containing only 28 bytes, IPv4 10.5.1.2 → 10.5.2.2"},
		{"the way back", strings.Replace(packet, "0a0501020a050202", "0a0502020a050102", 1), ""},
		{"not UDP", strings.Replace(packet, "4011", "4006", 1), ""},
		{"a header between", strings.Replace(packet, udp, udp+"0000000000000000", 1), ""},
		{"cut short", packet[:40], ""},
		{"nothing", "", ""},
	} {
		b, err := hex.DecodeString(c.packet)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.describe(b); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
