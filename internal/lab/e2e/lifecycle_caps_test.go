package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// confined returns a command that runs another with the rights that the service
// unit leaves it.
func confined(t *testing.T) []string {
	t.Helper()
	unit, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "systemd", "twilld.service"))
	testkit.Must(t, err)
	_, caps, ok := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	if !ok {
		t.Fatal("the unit names no capabilities")
	}
	caps, _, _ = strings.Cut(caps, "\n")
	bounds := "-all"
	for c := range strings.FieldsSeq(caps) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return []string{"setpriv", "--no-new-privs", "--bounding-set=" + bounds, "--inh-caps=-all", "--"}
}

// pod-a ── host a ──────────── host b ── pod-b
func TestCapabilitiesOfTheServiceUnitAreEnough(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	for _, d := range l.daemons {
		d.wrap = confined(t)
	}
	l.start()
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		if err := ping(l.pod(0), addr, 1472); err != nil {
			t.Error(err)
		}
	})
	for _, d := range l.daemons {
		for _, o := range d.status().Dataplane.Offloads {
			if !o.InForce {
				t.Errorf("%s: %s: %s", d.ns, o.Name, o.Why)
			}
		}
		if log := d.stderr.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("complaints:\n%s", log)
		}
	}
}
