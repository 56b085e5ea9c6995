package layout

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/twillnet/twill/lease"
)

// changes is the result of take, for comparison: subnets put with their public address,
// and deleted.
func changes(t *Table) []string {
	u := t.Take()
	s := []string{}
	for _, l := range u.Put {
		s = append(s, fmt.Sprintf("+%s=%s", l.Key(), l.PublicIP))
	}
	for _, k := range u.Delete {
		s = append(s, "-"+string(k))
	}
	return s
}

func node(k *Keys, name, cidr, ip string) *Node {
	return &Node{Name: name, PodCIDRs: []string{cidr}, Annotations: map[string]string{
		k.managed: "true", k.public: ip, k.data: "null", k.kind: "",
	}}
}

// TestOneLeaseANode goes through what may happen to nodes; each line is one event
// and what it changes.
func TestOneLeaseANode(t *testing.T) {
	k := mustKeys(t)
	tb := NewTable(k, discard())
	bare := func(name, cidr string) *Node { return &Node{Name: name, PodCIDRs: []string{cidr}} }
	for i, tt := range []struct {
		what string
		do   func()
		want []string
	}{
		{"a node without annotations", func() { tb.Put(bare("n1", "10.244.1.0/24")) }, []string{}},
		{"annotated", func() { tb.Put(node(k, "n1", "10.244.1.0/24", "192.0.2.1")) }, []string{"+10.244.1.0-24=192.0.2.1"}},
		{"the same again", func() { tb.Put(node(k, "n1", "10.244.1.0/24", "192.0.2.1")) }, []string{}},
		{"another address", func() { tb.Put(node(k, "n1", "10.244.1.0/24", "192.0.2.9")) }, []string{"+10.244.1.0-24=192.0.2.9"}},
		{"annotations removed", func() { tb.Put(bare("n1", "10.244.1.0/24")) }, []string{}},
		{"nonsense", func() { tb.Put(node(k, "n1", "10.244.1.0/24", "nowhere")) }, []string{}},
		{"made again with another podCIDR", func() { tb.Put(node(k, "n1", "10.244.7.0/24", "192.0.2.1")) }, []string{"-10.244.1.0-24", "+10.244.7.0-24=192.0.2.1"}},
		{"a second with the same subnet", func() { tb.Put(node(k, "n2", "10.244.7.0/24", "192.0.2.2")) }, []string{}},
		{"the first is gone", func() { tb.Remove("n1") }, []string{"+10.244.7.0-24=192.0.2.2"}},
		{"the own node", func() {
			tb.SetOwn("n3", lease.Lease{Subnet: mustPrefix("10.244.3.0/24"), Attrs: lease.Attrs{PublicIP: ipv4}})
		}, []string{"+10.244.3.0-24=192.0.2.11"}},
		{"which announces another address", func() { tb.Put(node(k, "n3", "10.244.3.0/24", "203.0.113.5")) }, []string{}},
		{"and is deleted", func() { tb.Remove("n3") }, []string{}},
		{"and moved", func() {
			tb.SetOwn("n3", lease.Lease{Subnet: mustPrefix("10.244.4.0/24"), Attrs: lease.Attrs{PublicIP: ipv4}})
		}, []string{"-10.244.3.0-24", "+10.244.4.0-24=192.0.2.11"}},
		{"a list without the second", func() { tb.Replace([]*Node{node(k, "n1", "10.244.7.0/24", "192.0.2.1")}) }, []string{"+10.244.7.0-24=192.0.2.1"}},
		{"an empty list", func() { tb.Replace(nil) }, []string{"-10.244.7.0-24"}},
	} {
		tt.do()
		got := changes(tb)
		if len(tt.want) == 2 { // put come first
			tt.want[0], tt.want[1] = tt.want[1], tt.want[0]
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%d, %s: got %q, want %q", i, tt.what, got, tt.want)
		}
	}
	if l := tb.Leases(); len(l) != 1 || l[0].Key() != "10.244.4.0-24" {
		t.Errorf("in the end there are %v, want the own lease alone", l)
	}
}
