package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/pinger"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// soakFaults are what happens in a round, in this order.
func soakFaults() []fault {
	restart := func(sig syscall.Signal) func(*soak, *pinger.Pinger) {
		return func(s *soak, _ *pinger.Pinger) {
			s.daemons[0].stop(sig)
			s.daemons[0].start()
			s.daemons[0].waitReady()
		}
	}
	return []fault{
		{name: "none", happen: func(s *soak, p *pinger.Pinger) { s.pass(p, 500) }},
		{name: "40 changes of leases", happen: (*soak).churn},
		{name: "a: SIGTERM, started again", happen: restart(syscall.SIGTERM)},
		{name: "a: kill -9, started again", happen: restart(syscall.SIGKILL)},
		{name: "a: taken over by a new process", happen: (*soak).takeOver},
		{name: "a: taking over fails", happen: func(s *soak, _ *pinger.Pinger) { s.daemons[0].takeOver("--tun-offload=off").wait() }},
		{name: "b: stopped for a quarter of a second", happen: func(s *soak, p *pinger.Pinger) {
			pid := s.daemons[1].cmd.Process.Pid
			testkit.Must(s.t, syscall.Kill(pid, syscall.SIGSTOP))
			s.pass(p, 250)
			testkit.Must(s.t, syscall.Kill(pid, syscall.SIGCONT))
		}},
		{name: "etcd killed, started again", happen: func(s *soak, p *pinger.Pinger) {
			s.server.Kill()
			s.pass(p, 500)
			s.server.Restart(s.t)
		}},
		{name: "etcd stopped for a second", happen: func(s *soak, p *pinger.Pinger) {
			testkit.Must(s.t, syscall.Kill(s.server.PID(), syscall.SIGSTOP))
			s.pass(p, 1000)
			testkit.Must(s.t, syscall.Kill(s.server.PID(), syscall.SIGCONT))
		}},
		{name: "b: cut off from etcd for a second", happen: func(s *soak, p *pinger.Pinger) {
			heal := s.cutOff(1)
			s.pass(p, 1000)
			heal()
		}},
		{name: "b: interface down for a quarter of a second", happen: func(s *soak, p *pinger.Pinger) {
			nl, link := s.Hosts[1].NS.Netlink(), s.underlayLink(1)
			testkit.Must(s.t, nl.LinkSetDown(link))
			s.pass(p, 250)
			testkit.Must(s.t, nl.LinkSetUp(link))
		}},
		{name: "b: MTU 1400 and back", happen: func(s *soak, _ *pinger.Pinger) {
			for _, mtu := range []int{1400, 1500} {
				testkit.Must(s.t, s.Hosts[1].NS.Netlink().LinkSetMTU(s.underlayLink(1), mtu))
				testkit.Eventually(s.t, "subnet.env has the MTU of the device", func() bool {
					return strings.Contains(s.daemons[1].env(), fmt.Sprintf("FLANNEL_MTU=%d\n", mtu-28))
				})
			}
		}},
		{name: "b: flannel0 deleted", happen: func(s *soak, _ *pinger.Pinger) {
			nl := s.Hosts[1].NS.Netlink()
			link, err := nl.LinkByName("flannel0")
			testkit.Must(s.t, err, nl.LinkDel(link))
			testkit.Eventually(s.t, "flannel0 exists again", func() bool {
				_, err := nl.LinkByName("flannel0")
				return err == nil
			})
		}},
	}
}

// churn makes and deletes leases of nodes that do not run.
func (s *soak) churn(*pinger.Pinger) {
	s.t.Helper()
	const leases = 20
	for i := range leases {
		s.putLease(fmt.Sprintf("10.5.%d.0/24", 100+i), fmt.Sprintf("172.31.9.%d", 100+i))
	}
	s.seesInTheEnd(1, 2+leases)
	for i := range leases {
		_, err := s.client.Delete(s.t.Context(), fmt.Sprintf("%s/subnets/10.5.%d.0-24", etcdPrefix, 100+i))
		testkit.Must(s.t, err)
	}
	s.seesInTheEnd(1, 2)
}

func (s *soak) takeOver(*pinger.Pinger) {
	s.t.Helper()
	old := s.daemons[0]
	next := old.takeOver()
	old.wait()
	next.waitReady()
	next.args = old.args
	s.daemons[0] = next
}

// resources are what a daemon uses of the machine.
type resources struct{ resident, descriptors, goroutines, threads int } // resident in KiB

func (r resources) leaked(before resources) bool {
	return r.descriptors > before.descriptors+slack || r.goroutines > before.goroutines+slack
}

// resources returns those of the daemons in turn.
func (s *soak) resources() (all []resources) {
	s.t.Helper()
	for i, d := range s.daemons {
		pid := d.cmd.Process.Pid
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		testkit.Must(s.t, err)
		all = append(all, resources{
			resident:    field(s.t, string(text), "VmRSS:"),
			threads:     field(s.t, string(text), "Threads:"),
			descriptors: len(descriptors(s.t, pid)),
			goroutines:  field(s.t, s.metrics(i), "go_goroutines"),
		})
	}
	return all
}

// metrics returns /metrics of host number i.
func (s *soak) metrics(i int) string {
	s.t.Helper()
	transport := &http.Transport{DialContext: s.Hosts[i].NS.Dial}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: testkit.Patience}
	res, err := client.Get("http://127.0.0.1:8081/metrics")
	testkit.Must(s.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	testkit.Must(s.t, err)
	return string(text)
}

// field returns the number that follows a name at the start of a line.
func field(t testing.TB, text, name string) int {
	t.Helper()
	_, after, ok := strings.Cut("\n"+text, "\n"+name)
	var n float64 // large ones have an exponent
	if _, err := fmt.Sscan(after, &n); !ok || err != nil {
		t.Fatalf("no number %s in\n%s", name, text)
	}
	return int(n)
}
