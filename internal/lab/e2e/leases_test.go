package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// listed is a line of twill leases --json.
type listed struct {
	Own     bool
	Traffic *struct {
		TXPackets uint64 `json:"tx_packets"`
		RXPackets uint64 `json:"rx_packets"`
	}
	Idle *float64 `json:"idle_seconds"`
}

// listedBeside runs twill leases beside d, in both its forms.
func (l *etcdLab) listedBeside(d *daemon) (rows []listed, table string) {
	l.t.Helper()
	for _, form := range []string{"--json=true", "--json=false"} {
		out, err := d.ns.Command(l.t.Context(), bin("twill"), "leases", form, "--socket="+d.socket, "--etcd-endpoints="+l.endpoint()).Output()
		testkit.Must(l.t, err)
		table = string(out)
		if form == "--json=true" {
			testkit.Must(l.t, json.Unmarshal(out, &rows))
		}
	}
	return rows, table
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	etcd ────── host c
func TestLeasesShowWhenANodeWasLastActive(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newEtcdLab(t)
	a := l.daemons[0]
	l.putLease("10.5.77.0/24", "172.31.9.77")
	l.seesInTheEnd(0, 3)

	rows, table := l.listedBeside(a)
	if len(rows) != 3 || !rows[0].Own || rows[0].Traffic != nil {
		t.Fatalf("got %+v", rows)
	}
	if n := strings.Count(table, "never  "); n != 2 { // b, and the one that does not exist
		t.Errorf("%d peers with no traffic, want 2:\n%s", n, table)
	}

	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 100))
	rows, table = l.listedBeside(a)
	b, silent := rows[1], rows[2]
	if b.Traffic == nil || b.Traffic.TXPackets == 0 || b.Traffic.RXPackets == 0 || b.Idle == nil || *b.Idle > 60 {
		t.Errorf("after a ping, b: %+v", b)
	}
	if silent.Traffic == nil || silent.Idle != nil {
		t.Errorf("a node that nothing was sent to: %+v", silent)
	}
	if !strings.Contains(table, "s ago ") || strings.Count(table, "never  ") != 1 {
		t.Errorf("got\n%s", table)
	}

	testkit.Eventually(t, "b has been idle for more than a second", func() bool {
		rows, _ = l.listedBeside(a)
		return rows[1].Idle != nil && *rows[1].Idle > 1
	}, func() string { return fmt.Sprintf("%+v", rows[1]) })
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	└── etcd ──┘
//
// The kernel carries the packets, and counts none by peer.
func TestLeasesShowWhenTheKernelLastSentToANode(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("vxlan"), twill("vxlan"), twill("vxlan"))
	var rows []listed
	var table string
	// The kernel counts in ticks: a packet has to come later than the entry.
	testkit.Eventually(t, "status shows when a sent to b", func() bool {
		c.waitReach(0, 1)
		rows, table = c.listedBeside(c.running[0].(*daemon))
		return len(rows) == 3 && rows[1].Idle != nil
	})
	if len(rows) != 3 || rows[1].Idle == nil || *rows[1].Idle > 60 || rows[1].Traffic != nil {
		t.Errorf("after a ping, b: %+v", rows)
	}
	if rows[2].Idle != nil || !strings.Contains(table, "s ago ") || strings.Count(table, "never  ") != 1 {
		t.Errorf("something was sent to c:\n%s", table)
	}
}
