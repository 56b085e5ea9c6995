package e2e

import (
	"path/filepath"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// BenchmarkMemoryOfABoard shows what each build of the daemon leaves free on a 32-bit ARM
// board with 128 MiB and one processor. The builds are those of bin/arm.
//
// pod-a ── host a, this kernel ────────── guest, a board ── pod-b
func BenchmarkMemoryOfABoard(b *testing.B) {
	board := linux61.of("arm")
	board.memory = 128
	for _, program := range []string{"twilld", "twilld-lite", "twilld-board"} {
		b.Run(program, func(b *testing.B) {
			l := newLab(b, labOptions{idle: true})
			n := bootNode(b, board, l.Hosts[1], map[string]string{
				"/etc/twill/leases.json": l.leaseFile,
				"/usr/sbin/twilld":       filepath.Join("..", "..", "..", "bin", "arm", program),
			}, "tun")
			show := func(when string) {
				b.Logf("%s:\n%s", when, n.run("grep -E '^(VmRSS|RssAnon|RssFile|Threads)' /proc/$(pidof twilld)/status; grep -E '^(MemTotal|MemAvailable)' /proc/meminfo"))
			}
			l.daemons[0].start()
			l.daemons[0].waitReady()
			n.start("--lease-file=/etc/twill/leases.json")
			testkit.Must(b, l.SetPodMTU(l.daemons[0].status().Dataplane.MTU()))
			testkit.Must(b, ping(l.pod(0), l.pod(1).Addr, 1472))
			show("idle")
			testkit.Must(b, streams{flows: 4, up: 16 << 20, down: 16 << 20}.run(l.pod(0), l.pod(1), l.pod(1).Addr))
			show("after 128 MiB of TCP")
		})
	}
}
