package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// Times and sizes depend on the machine, so the test prints them; what it asserts is
// that all nodes become peers and that no packet to a node which does not change is
// lost.
//
//	pod-a ── host a ─┬─ host b ── pod-b
//	                 └─ kube-apiserver with 5,000 more nodes
func TestKubeFiveThousandNodesAndTwentyChangesASecondDisturbNoPeer(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 2, `{"Type": "udp"}`)
	l.configure(`{"Network": "10.0.0.0/8", "Backend": {"Type": "udp"}}`)
	l.addMany(t)
	d := l.daemons[0]
	l.daemons[1].start()
	l.daemons[1].waitReady()
	begin := time.Now()
	d.start()
	if !testkit.Within(time.Minute, func() bool { return strings.Contains(d.stderr.String(), "msg=ready") }) {
		t.Fatal("the daemon is not ready within a minute")
	}
	t.Logf("start to a full table: %s", time.Since(begin).Round(time.Millisecond))
	t.Logf("resident memory with a full table: %s", d.memory())
	l.sees(0, manyLeases+2)
	doc := d.status()
	if n := len(doc.Dataplane.Peers); n != manyLeases+1 {
		t.Errorf("%d peers, want %d", n, manyLeases+1)
	}
	testkit.Must(t, l.SetPodMTU(doc.Dataplane.MTU()))

	l.AddAnnotatedNode("moving", stockAnnotations("172.31.9.31"), "10.200.0.0/24")
	l.timeChanges(t, func(addr string) error {
		return l.TryAnnotate("moving", map[string]any{"flannel.alpha.coreos.com/public-ip": addr})
	})

	flows := l.steady(0, 1)
	flows.pass(t, 500)
	cpu, begin := d.cpu(t), time.Now()
	const changes, pace = 1200, 50 * time.Millisecond // a minute
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := range changes {
		<-tick.C
		l.Annotate(manyNode(i%50), map[string]any{"flannel.alpha.coreos.com/public-ip": fmt.Sprintf("172.31.%d.%d", 100+i/50%2, 1+i%50)})
	}
	took := time.Since(begin)
	t.Logf("%d changes in %s, CPU of the daemon with 8 datagrams a millisecond: %.0f %%", changes, took.Round(time.Second),
		100*(d.cpu(t)-cpu).Seconds()/took.Seconds())
	t.Logf("resident memory after that: %s", d.memory())
	testkit.Eventually(t, "the last changes are in force", func() bool {
		found := 0
		for _, p := range d.status().Dataplane.Peers {
			if strings.HasPrefix(p.PublicIP.String(), fmt.Sprintf("172.31.%d.", 100+(changes-1)/50%2)) {
				found++
			}
		}
		return found == 50
	})
	flows.stop(t)
}

func manyNode(i int) string { return fmt.Sprintf("many-%d", i) }

// stockAnnotations are the annotations of a node of stock flannel's udp backend.
func stockAnnotations(ip string) map[string]string {
	return map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/backend-type": "",
		"flannel.alpha.coreos.com/backend-data": "null", "flannel.alpha.coreos.com/public-ip": ip,
	}
}

// addMany makes the nodes that do not run, with as many images in their status as a
// kubelet reports.
func (l *kubeLab) addMany(t *testing.T) {
	t.Helper()
	var images []any
	for i := range 50 {
		images = append(images, map[string]any{"sizeBytes": 50_000_000, "names": []string{
			fmt.Sprintf("registry.example.com/team/application-%d@sha256:%064d", i, i), fmt.Sprintf("registry.example.com/team/application-%d:v1.%d", i, i),
		}})
	}
	work := make(chan int)
	errs := make(chan error, 16)
	var workers sync.WaitGroup
	for range cap(errs) {
		workers.Go(func() {
			for i := range work {
				if err := l.TryAddNode(manyNode(i), stockAnnotations(fmt.Sprintf("172.31.%d.%d", 16+i/256, i%256)), map[string]any{"images": images}, manySubnet(i)); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range manyLeases {
		work <- i
	}
	close(work)
	workers.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}
