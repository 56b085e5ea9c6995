package etcdtest

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// events makes a history: "put KEY ADDRESS" or "delete KEY" for each revision.
func events(lines ...string) []*clientv3.Event {
	var es []*clientv3.Event
	for i, line := range lines {
		f := strings.Fields(line)
		e := &clientv3.Event{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("/n/subnets/" + f[1]), ModRevision: int64(i + 1)}}
		if f[0] == "put" {
			e.Type, e.Kv.Value = mvccpb.PUT, fmt.Appendf(nil, `{"PublicIP":%q}`, f[2])
		}
		es = append(es, e)
	}
	return es
}

func TestAHistoryWithOneOwnerAtATimeHasNoFault(t *testing.T) {
	got := Faults(events(
		"put 10.5.1.0-24 192.0.2.1",
		"put 10.5.2.0-24&fd00:0:0:2::-64 192.0.2.2",
		"put 10.5.1.0-24 192.0.2.1", // renewed
		"delete 10.5.1.0-24",
		"put 10.5.1.0-24 192.0.2.3",
		"delete 10.5.2.0-24&fd00:0:0:2::-64",
		"put 10.5.2.0-24 192.0.2.1",
		"put rubbish 192.0.2.9",
	), "/n/subnets/")
	if len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestTwoOwnersOfASubnetAreFound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []*clientv3.Event
		want   string
	}{
		{"overwritten", events("put 10.5.1.0-24 192.0.2.1", "put 10.5.1.0-24 192.0.2.2"),
			"revision 2: 10.5.1.0-24 passes from 192.0.2.1 to 192.0.2.2 without having ended"},
		{"within a wider one", events("put 10.5.0.0-20 192.0.2.1", "put 10.5.1.0-24 192.0.2.2"),
			"revision 2: 10.5.1.0-24 of 192.0.2.2 overlaps 10.5.0.0-20 of 192.0.2.1"},
		{"around a narrower one", events("put 10.5.1.0-24 192.0.2.1", "put 10.5.0.0-20 192.0.2.2"),
			"revision 2: 10.5.0.0-20 of 192.0.2.2 overlaps 10.5.1.0-24 of 192.0.2.1"},
		{"one IPv6 subnet", events("put 10.5.1.0-24&fd00::-64 192.0.2.1", "put 10.5.2.0-24&fd00::-64 192.0.2.2"),
			"revision 2: 10.5.2.0-24&fd00::-64 of 192.0.2.2 overlaps 10.5.1.0-24&fd00::-64 of 192.0.2.1"},
		{"one family of two", events("put 10.5.1.0-24&fd00::-64 192.0.2.1", "put 10.5.1.0-24 192.0.2.2"),
			"revision 2: 10.5.1.0-24 of 192.0.2.2 overlaps 10.5.1.0-24&fd00::-64 of 192.0.2.1"},
	} {
		got := Faults(tt.events, "/n/subnets/")
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
}
