package metrics

import "testing"

func TestEveryReasonHasNameAndMeaning(t *testing.T) {
	seen := map[string]bool{}
	for d := range NumDrops {
		if d.String() == "" || d.Meaning() == "" || seen[d.String()] {
			t.Errorf("reason %d: name %q, meaning %q", d, d, d.Meaning())
		}
		seen[d.String()] = true
	}
	if NumDrops.String() != "unknown" || NumDrops.Meaning() != "" {
		t.Errorf("no reason: %q, %q", NumDrops, NumDrops.Meaning())
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	var h BatchSizes
	if n := testing.AllocsPerRun(100, func() { h.Observe(45) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
