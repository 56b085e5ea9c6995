package dataplane

import (
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/lease"
)

func TestChallengeChangesNothingElseOfALease(t *testing.T) {
	a := attrs(backend.Settings{}, backend.Choice{Kinds: []backend.Kind{backend.VXLAN, backend.UDP}}, eth0, vteps{v4: dataOf(vtep1)}, partial, "7f")
	challenged := Challenge(a, "80")
	if node, challenger := NodeOf(challenged); node != "7f" || challenger != "80" {
		t.Errorf("written by %q, challenged by %q", node, challenger)
	}
	l := lease.Lease{Attrs: challenged, Subnet: netip.MustParsePrefix("10.5.2.0/24")}
	p := decode(l, 1)
	if len(p.kinds) != 2 {
		t.Errorf("backends %v", p.kinds)
	}
	if d := p.v4; d.err != nil || d.VNI != dataOf(vtep1).VNI || string(d.VtepMAC) != string(dataOf(vtep1).VtepMAC) {
		t.Errorf("VTEP %+v", d)
	}
	if node, challenger := NodeOf(a); node != "7f" || challenger != "" {
		t.Errorf("the original: %q, %q", node, challenger)
	}
}

func TestDataOfAnotherFormHasNoID(t *testing.T) {
	for _, text := range []string{"", "null", "7", `"text"`, `{"Node": 7}`, `[{"Node": "7f"}]`} {
		a := lease.Attrs{BackendData: []byte(text)}
		if node, challenger := NodeOf(a); node != "" || challenger != "" {
			t.Errorf("%s: %q, %q", text, node, challenger)
		}
	}
}
