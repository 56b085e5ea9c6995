package bench

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// What the tour shows is read from the machine, so it is checked by what must be in it
// wherever it runs.
func TestTourShowsThePacketWhereverItComesBy(t *testing.T) {
	netlabtest.Root(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	steps := 0
	if err := Tour(t.Context(), bin, &out, func() error { steps++; return nil }); err != nil {
		t.Fatalf("%v after\n%s", err, &out)
	}
	if steps != 10 { // between the steps of each chapter
		t.Errorf("%d pauses, want 10", steps)
	}
	udp, vxlan, ok := strings.Cut(out.String(), "# By the vxlan backend")
	if !ok {
		t.Fatalf("no second chapter in\n%s", &out)
	}
	for text, wants := range map[string][]string{
		udp: {
			`default via 10\.5\.1\.1 dev eth0`,
			`host a# ip route\n    10\.5\.0\.0/16 dev flannel0`,
			`10\.5\.2\.0/24 → 172\.31\.9\.12 by udp`,
			// Without an Ethernet header, and one hop on.
			`host a, flannel0: 48 bytes\n    IPv4      45 .*\n.*\n              10\.5\.1\.2 → 10\.5\.2\.2, 48 bytes, TTL 63`,
			`host a, eth0: 90 bytes\n    Ethernet (?s:.*)172\.31\.9\.11 → 172\.31\.9\.12, 76 bytes(?s:.*)→ 8285, 56 bytes(?s:.*)10\.5\.1\.2 → 10\.5\.2\.2, 48 bytes, TTL 63`,
			`there are 1472 left`,
			`pod-b, eth0: 62 bytes\n(?s:.*)TTL 62`,
		},
		vxlan: {
			`10\.5\.2\.0/24 via 10\.5\.2\.0 dev flannel\.1 onlink`,
			`10\.5\.2\.0 lladdr ([0-9a-f:]+) PERMANENT`,
			`dst 172\.31\.9\.12 self permanent`,
			`host a, eth0: 112 bytes\n    Ethernet (?s:.*)→ 8472, 78 bytes(?s:.*)network \(VNI\) 1\n    Ethernet (?s:.*)10\.5\.1\.2 → 10\.5\.2\.2`,
			`1450 are left`,
		},
	} {
		for _, want := range wants {
			if !regexp.MustCompile(want).MatchString(text) {
				t.Errorf("nothing like %s in\n%s", want, text)
			}
		}
	}
}

func TestTourEndsAtAPause(t *testing.T) {
	netlabtest.Root(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	end := errors.New("end of input")
	var out strings.Builder
	if err := Tour(t.Context(), bin, &out, func() error { return end }); !errors.Is(err, end) {
		t.Errorf("got %v, want that of the pause", err)
	}
	if strings.Contains(out.String(), "\n2. ") {
		t.Errorf("it continued:\n%s", &out)
	}
}

func TestPacketsOfAnotherFormAreRefused(t *testing.T) {
	for _, frame := range [][]byte{make([]byte, 13), make([]byte, 60)} {
		if text, err := dissect(frame, true); err == nil {
			t.Errorf("%d zeros are %s", len(frame), text)
		}
	}
}
