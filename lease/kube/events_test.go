//go:build !nokube

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube"
)

// TestKubeEvents goes through what may happen to the nodes of a cluster. Each
// subtest finds the node n1, which is this one, and the node n2 of stock flannel.
func TestKubeEvents(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	each := func(name string, test func(t *testing.T, s *subject)) {
		t.Run(name, func(t *testing.T) {
			c.AddNode("n1", "10.244.1.0/24")
			c.AddAnnotatedNode("n2", peer("192.0.2.12"), "10.244.2.0/24")
			defer c.DeleteNode("n1")
			defer c.DeleteNode("n2")
			s := open(t, c, nil)
			defer func() { s.end() }() // before the nodes go
			s.run()
			s.expect("10.244.1.0/24=192.0.2.11 10.244.2.0/24=192.0.2.12")
			test(t, s)
		})
	}
	const both = "10.244.1.0/24=192.0.2.11 10.244.2.0/24=192.0.2.12"
	each("a node without annotations is annotated as stock does", func(t *testing.T, s *subject) {
		s.annotated(written)
	})
	each("a peer node that is deleted goes", func(t *testing.T, s *subject) {
		c.DeleteNode("n2")
		s.expect("10.244.1.0/24=192.0.2.11")
		c.AddNode("n2", "10.244.2.0/24")
	})
	each("the own node deleted and made again has its new podCIDR and annotations", func(t *testing.T, s *subject) {
		c.DeleteNode("n1")
		testkit.Eventually(t, "the lease is lost", func() bool {
			_, err := s.Renew(t.Context(), s.lease())
			return errors.Is(err, lease.ErrLost)
		})
		s.expect(both)
		c.AddNode("n1", "10.244.9.0/24")
		s.annotated(written)
		s.expect("10.244.2.0/24=192.0.2.12 10.244.9.0/24=192.0.2.11")
	})
	each("a peer made again with another podCIDR has one lease", func(t *testing.T, s *subject) {
		c.DeleteNode("n2")
		c.AddAnnotatedNode("n2", peer("192.0.2.12"), "10.244.7.0/24")
		s.expect("10.244.1.0/24=192.0.2.11 10.244.7.0/24=192.0.2.12")
	})
	each("a peer without annotations stays until it is gone, and is reported", func(t *testing.T, s *subject) {
		c.Annotate("n2", map[string]any{prefix + "kube-subnet-manager": nil, prefix + "public-ip": nil})
		s.logs(`kube-subnet-manager: no longer \"true\"`)
		s.expect(both)
		c.DeleteNode("n2")
		s.expect("10.244.1.0/24=192.0.2.11")
		c.AddNode("n2", "10.244.2.0/24")
	})
	each("a peer with nonsense keeps its last good lease, and is reported", func(t *testing.T, s *subject) {
		c.Annotate("n2", map[string]any{prefix + "backend-data": "VNI", prefix + "public-ip": "192.0.2.99"})
		s.logs("is not JSON")
		s.expect(both)
		c.Annotate("n2", patched(peer("192.0.2.13")))
		s.expect("10.244.1.0/24=192.0.2.11 10.244.2.0/24=192.0.2.13")
	})
	each("own annotations that others overwrite or remove are written again", func(t *testing.T, s *subject) {
		c.Annotate("n1", map[string]any{prefix + "public-ip": "192.0.2.66", prefix + "backend-data": "null"})
		s.annotated(written)
		c.Annotate("n1", map[string]any{prefix + "public-ip": nil, prefix + "kube-subnet-manager": nil, prefix + "twill": nil})
		s.annotated(written)
		s.expect(both)
	})
	each("an overwrite is announced at once, and leaves the node where it is", func(t *testing.T, s *subject) {
		c.Annotate("n1", map[string]any{prefix + "public-ip-overwrite": "203.0.113.5"})
		s.annotated(map[string]string{"public-ip": "203.0.113.5"})
		s.expect(both)
		c.Annotate("n1", map[string]any{prefix + "public-ip-overwrite": nil})
		s.annotated(written)
	})
	each("node-public-ip is reported at once", func(t *testing.T, s *subject) {
		c.Annotate("n1", map[string]any{prefix + "node-public-ip": "198.51.100.7"})
		testkit.Eventually(t, "NodeAddrs has it", func() bool {
			a, _, err := s.NodeAddrs(t.Context())
			return err == nil && a.String() == "198.51.100.7"
		})
	})
	each("the condition is set when the node is ready, and again when another sets it", func(t *testing.T, s *subject) {
		unavailable := func(status, reason string) func() bool {
			return func() bool {
				got := c.Node("n1").Condition("NetworkUnavailable")
				return got.Status == status && got.Reason == reason
			}
		}
		if got := c.Node("n1").Condition("NetworkUnavailable"); got.Type != "" {
			t.Errorf("before it is ready the node has %+v", got)
		}
		s.Ready()
		testkit.Eventually(t, "the condition is stock's", unavailable("False", "FlannelIsUp"))
		if got := c.Node("n1").Condition("NetworkUnavailable").Message; got != "Flannel is running on this node" {
			t.Errorf("its message is %q", got)
		}
		c.SetCondition("n1", "NetworkUnavailable", "True", "NoRouteCreated")
		testkit.Eventually(t, "the condition is stock's again", unavailable("False", "FlannelIsUp"))
		s.annotated(written)
		if got := c.Node("n1").OurAnnotations(prefix)["twill"]; !strings.Contains(got, `"Backends":["vxlan","udp"]`) {
			t.Errorf("what twill announces beyond stock is %q", got)
		}
	})
	each("a network configuration that is edited is in force at once, a broken one is not", func(t *testing.T, s *subject) {
		testkit.Must(t, os.WriteFile(s.path, []byte(`{"Network": "10.244.0.0/16", "Backnd": {"Type": "host-gw"}}`), 0o600))
		testkit.Eventually(t, "the key is named", func() bool {
			err := s.lastErr()
			return err != nil && strings.Contains(err.Error(), `unknown key "Backnd"; did you mean "Backend"?`) && strings.Contains(err.Error(), s.path)
		})
		testkit.Must(t, os.WriteFile(s.path, []byte(`{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}`), 0o600))
		testkit.Eventually(t, "the backend is host-gw", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.config.Backend.Type == "host-gw" && s.errs == nil
		})
	})
	each("a restart writes nothing", func(t *testing.T, s *subject) {
		s.Ready()
		testkit.Eventually(t, "the condition is set", func() bool { return c.Node("n1").Condition("NetworkUnavailable").Status == "False" })
		s.end()
		before := c.ResourceVersion("n1")
		again := open(t, c, nil)
		defer func() { again.end() }()
		again.run()
		again.Ready()
		again.expect(both)
		c.Annotate("n2", map[string]any{prefix + "public-ip": "192.0.2.14"})
		again.expect("10.244.1.0/24=192.0.2.11 10.244.2.0/24=192.0.2.14")
		if after := c.ResourceVersion("n1"); after != before {
			t.Errorf("the node has gone from version %s to %s", before, after)
		}
	})
}

// TestKubeOneFamilyOfADualStackNodeChanges is what stock flannel passes over.
func TestKubeOneFamilyOfADualStackNodeChanges(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	c.AddNode("n1", "fd00:244:0:1::/64", "10.244.1.0/24")
	p := peer("192.0.2.12")
	p[prefix+"public-ipv6"], p[prefix+"backend-v6-data"] = "2001:db8::12", `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e6"}`
	c.AddAnnotatedNode("n2", p, "10.244.2.0/24", "fd00:244:0:2::/64")
	s := open(t, c, nil)
	testkit.Must(t, os.WriteFile(s.path, []byte(`{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/48"}`), 0o600))
	s.run()
	s.expect("10.244.1.0/24=192.0.2.11 fd00:244:0:1::/64=192.0.2.11 10.244.2.0/24=192.0.2.12 fd00:244:0:2::/64=192.0.2.12")
	c.Annotate("n2", map[string]any{prefix + "public-ipv6": "2001:db8::99"})
	testkit.Eventually(t, "the IPv6 address has changed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		l, _ := s.set.Get("10.244.2.0-24&fd00:244:0:2::-64")
		return l.PublicIPv6.String() == "2001:db8::99"
	})
}

// TestKubePodCIDRComesLater is how a node looks that has just been registered.
func TestKubePodCIDRComesLater(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	s := open(t, c, nil)
	acquire := func() error {
		_, err := s.Acquire(t.Context(), attrsOf("192.0.2.11"), lease.Previous{})
		return err
	}
	wants := func(err error, parts ...string) {
		t.Helper()
		if !errors.Is(err, lease.ErrPending) {
			t.Fatalf("got %v, want an error that wraps ErrPending", err)
		}
		for _, p := range parts {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%q does not say %q", err, p)
			}
		}
	}
	wants(acquire(), "node n1", "NODE_NAME")
	c.AddNode("n1")
	wants(acquire(), "node n1", "spec.podCIDR", "--allocate-node-cidrs=true", "--cluster-cidr=10.244.0.0/16")
	c.PatchNode("n1", map[string]any{"spec": map[string]any{"podCIDR": "10.244.1.0/24", "podCIDRs": []string{"10.244.1.0/24"}}})
	testkit.Must(t, acquire())

	c.AddNode("out", "10.99.1.0/24")
	s = open(t, c, func(o *kube.Options) { o.Node = "out" })
	wants(acquire(), "node out", "10.99.1.0/24", "outside the network 10.244.0.0/16", "--cluster-cidr")
	testkit.Must(t, os.WriteFile(s.path, []byte(`{"Network": "10.99.1.0/24"}`), 0o600)) // the podCIDR itself
	testkit.Must(t, acquire())
}

// TestKubeControllerAssigns has the podCIDR from the real controller.
func TestKubeControllerAssigns(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{ClusterCIDR: "10.244.0.0/16"})
	c.AddNode("n1")
	testkit.Eventually(t, "n1 has a podCIDR", func() bool { return c.Node("n1").Spec.PodCIDR != "" })
	s := open(t, c, nil)
	s.run()
	s.expect(c.Node("n1").Spec.PodCIDR + "=192.0.2.11")
}

// TestKubeEventsAreRecordedOnTheNode has one object for each reason.
func TestKubeEventsAreRecordedOnTheNode(t *testing.T) {
	c := kubetest.Start(t, kubetest.Options{})
	c.AddNode("n1", "10.244.1.0/24")
	s := open(t, c, nil)
	var mu sync.Mutex
	var holds []kube.Event
	hold := func(all ...kube.Event) {
		mu.Lock()
		defer mu.Unlock()
		holds = all
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		s.KeepEvents(ctx, func() []kube.Event {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(holds)
		})
	})
	defer running.Wait()
	defer cancel()
	is := func(want ...string) {
		t.Helper()
		var got []string
		testkit.Eventually(t, "the Events of n1 are "+strings.Join(want, ", "), func() bool {
			got = nil
			for _, e := range c.Events("n1") {
				got = append(got, fmt.Sprintf("%s %s ×%d: %s", e.Type, e.Reason, e.Count, e.Message))
				if e.Source.Component != "twilld" || e.Source.Host != "n1" || e.LastTimestamp.Before(e.FirstTimestamp) {
					t.Fatalf("the Event is %+v", e)
				}
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		}, func() string { return strings.Join(got, "\n") })
	}
	conflict := kube.Event{Reason: "LeaseConflict", Message: "10.244.1.0/24"}
	hold(conflict, kube.Event{Reason: "NetworkReady", Message: "by vxlan", Normal: true})
	is("Normal NetworkReady ×1: by vxlan", "Warning LeaseConflict ×1: 10.244.1.0/24")
	conflict.Message = strings.Repeat("ä", 1000)
	hold(conflict)
	is("Normal NetworkReady ×1: by vxlan", "Warning LeaseConflict ×2: "+strings.Repeat("ä", 512))
	c.DeleteEvents() // as after an hour
	conflict.Message = "10.244.2.0/24"
	hold(conflict)
	is("Warning LeaseConflict ×1: 10.244.2.0/24")
}
