//go:build !noetcd

package etcd

import (
	"errors"
	"strings"
	"testing"

	"github.com/twillnet/twill/lease"
)

func TestConfigErrorsNameEndpointKeyAndRemedy(t *testing.T) {
	n := newNetwork(t, "")
	s := n.store()
	_, err := s.Config(n.ctx())
	want := "etcd " + shared.Endpoint + ": config " + n.prefix + "/config: no network config; write one with twill config set, or etcdctl put " + n.prefix + `/config '{"Network": "10.5.0.0/16"}'`
	if !errors.Is(err, ErrNoConfig) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := s.Acquire(n.ctx(), node(1), lease.Previous{}); !errors.Is(err, ErrNoConfig) {
		t.Errorf("Acquire returned %v", err)
	}
	n.put("config", `{"Network":"10.5.0.0/16","SubnetLen":31}`)
	_, err = s.Config(n.ctx())
	var key *lease.ConfigError
	want = "etcd " + shared.Endpoint + ": config " + n.prefix + "/config: network config: SubnetLen 31: want a whole number from 18 to 30 for Network 10.5.0.0/16; correct it with twill config set"
	if !errors.As(err, &key) || key.Key != "SubnetLen" || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := s.Acquire(n.ctx(), node(1), lease.Previous{}); !errors.As(err, &key) || len(n.all()) != 0 {
		t.Errorf("Acquire returned %v, etcd has %v", err, n.all())
	}
}

func TestOnlyAGoodConfigIsWritten(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	var key *lease.ConfigError
	if _, err := s.SetConfig(n.ctx(), []byte(`{"Network":"10.5.0.0/29"}`)); !errors.As(err, &key) {
		t.Errorf("got %v", err)
	}
	if text, err := s.PublishedText(n.ctx()); err != nil || string(text) != ipv4Only {
		t.Errorf("a refused config has left %s, %v", text, err)
	}
	text := "{\n  \"Network\": \"10.6.0.0/16\"\n}\n"
	c, err := s.SetConfig(n.ctx(), []byte(text))
	if err != nil || c.IPv4.Network.String() != "10.6.0.0/16" {
		t.Errorf("got %+v, %v", c, err)
	}
	if got, err := s.PublishedText(n.ctx()); err != nil || string(got) != text {
		t.Errorf("got %q, %v, want the text as it was written", got, err)
	}
	// A broken one can be looked at, too.
	n.put("config", "{")
	if got, err := s.PublishedText(n.ctx()); err != nil || string(got) != "{" {
		t.Errorf("got %q, %v", got, err)
	}
	n.delete("config")
	if _, err := s.PublishedText(n.ctx()); !errors.Is(err, ErrNoConfig) {
		t.Errorf("got %v", err)
	}
}

func TestACorrectedConfigIsUsedAndEachInvalidOneReportedOnce(t *testing.T) {
	n := newNetwork(t, "")
	s := n.store()
	refused := make(chan error, 10)
	got := make(chan *lease.Config, 1)
	ctx := n.ctx()
	go func() {
		c, err := s.WaitConfig(ctx, func(err error) { refused <- err })
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	expect := func(text string) {
		t.Helper()
		if err := <-refused; !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %s", err, text)
		}
	}
	expect("no network config")
	n.put("config", "{")
	expect("line 1, column 2")
	n.put("config", "{") // the same again
	n.put("config", "{}")
	expect("Network is missing")
	n.put("config", ipv4Only)
	if c := <-got; c == nil || c.IPv4.Network.String() != "10.5.0.0/16" {
		t.Errorf("got %+v", c)
	}
	if len(refused) != 0 {
		t.Errorf("also refused: %v", <-refused)
	}
}

func TestAWatchReportsConfigsAsTheyChange(t *testing.T) {
	n := newNetwork(t, "")
	n.put("subnets/10.5.1.0-24", value(1))
	w := n.watch(n.store())
	if u := w.next(); !errors.Is(u.Err, ErrNoConfig) {
		t.Fatalf("got %+v, want that there is no config", u)
	}
	n.put("config", `{"Network":"10.5.0.0/16","SubnetLen":1}`)
	w.untilErr("SubnetLen 1")
	n.put("config", ipv4Only)
	w.snapshot()
	w.until("10.5.1.0-24 of 192.0.2.1")

	n.put("config", "rubbish")
	w.untilErr("line 1, column 1")
	n.put("subnets/10.5.2.0-24", value(2)) // leases are still followed
	w.until("10.5.1.0-24 of 192.0.2.1", "10.5.2.0-24 of 192.0.2.2")
	n.put("config", "  "+ipv4Only)
	if u := w.next(); u.Err != nil || u.Config == nil || u.Put != nil {
		t.Errorf("got %+v, want the config alone: what is in force is good again", u)
	}
	n.put("config", ipv4Only) // no change
	n.delete("config")
	w.untilErr("no network config")
	n.put("config", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`)
	if u := w.next(); u.Config == nil || u.Config.Backend.Type != "vxlan" || u.Snapshot {
		t.Errorf("got %+v, want the new config", u)
	}
}
