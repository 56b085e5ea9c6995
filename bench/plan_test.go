package bench

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestRoundsAreInterleavedAndBeginWithAnotherPath(t *testing.T) {
	opts := Options{Rounds: 2}
	opts.Paths, _ = ParsePaths("twill,vxlan,host-gw")
	opts.Loads, _ = ParseLoads("tcp1,rr")
	var order []string
	for _, s := range opts.schedule(Wires[0], opts.Paths) {
		order = append(order, fmt.Sprint(s.round, s.load.Name, s.path.Name))
	}
	want := "1tcp1twill 1tcp1vxlan 1tcp1host-gw 1rrtwill 1rrvxlan 1rrhost-gw " +
		"2tcp1vxlan 2tcp1host-gw 2tcp1twill 2rrvxlan 2rrhost-gw 2rrtwill"
	if got := strings.ReplaceAll(strings.Join(order, "/"), " ", ""); got != strings.ReplaceAll(want, " ", "/") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLoadsThatAreNamedRunEverywhere(t *testing.T) {
	opts := Options{Rounds: 1, Paths: Paths}
	lossy, _ := find(Wires, "mtu+loss", Wire.name)
	for _, s := range opts.schedule(lossy, Paths) {
		if s.load.Name == "udp64" {
			t.Error("by default the rate without loss is measured on a wire with loss")
		}
	}
	opts.Loads, _ = ParseLoads("udp64")
	if steps := opts.schedule(lossy, Paths); len(steps) != len(Paths) {
		t.Errorf("%d runs of a load that was named, want one for each of %d paths", len(steps), len(Paths))
	}
}

func TestRunsAreShortenedUntilTheSessionFits(t *testing.T) {
	full := Options{Wires: Wires, Paths: Paths, Rounds: 5}
	full.Fit(25 * time.Minute)
	if got := full.Estimate(); got > 25*time.Minute || got < 24*time.Minute {
		t.Errorf("with runs of %v it takes %v", full.Duration, got)
	}
	if full.Duration < 400*time.Millisecond {
		t.Errorf("in 25 minutes runs take only %v", full.Duration)
	}
	full.Fit(time.Minute)
	if full.Duration != shortest {
		t.Errorf("runs of %v where there is no time at all", full.Duration)
	}
	full.Fit(24 * time.Hour)
	if full.Duration != longest {
		t.Errorf("runs of %v where there is any time", full.Duration)
	}
}

func TestNamesAreCheckedAndUnique(t *testing.T) {
	if paths, err := ParsePaths(AllPaths()); err != nil || len(paths) != len(Paths) {
		t.Errorf("all paths: %d of them, %v", len(paths), err)
	}
	if wires, err := ParseWires(AllWires()); err != nil || len(wires) != len(Wires) {
		t.Errorf("all wires: %d of them, %v", len(wires), err)
	}
	if loads, err := ParseLoads("rr,tcp1"); err != nil || loads[0].Name != "rr" || loads[1].Name != "tcp1" {
		t.Errorf("rr,tcp1: %v, %v", loads, err)
	}
	_, err := ParsePaths("twill,vxlna")
	if err == nil || !strings.Contains(err.Error(), `unknown path "vxlna"`) || !strings.Contains(err.Error(), "host-gw") {
		t.Errorf("a misspelt path: %v", err)
	}
	if _, err := ParseLoads("rr,rr"); err == nil || !strings.Contains(err.Error(), "duplicate load rr") {
		t.Errorf("a load named twice: %v", err)
	}
}
