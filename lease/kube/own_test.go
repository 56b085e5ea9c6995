//go:build !nokube

package kube

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease/kube/layout"
)

// The answer to a patch may arrive after the watch has delivered what another program
// changed later.
func TestAnswerDoesNotHideALaterChangeOfTheNode(t *testing.T) {
	node := func(version, value string) *corev1.Node {
		n := &corev1.Node{}
		n.Name, n.ResourceVersion = "node-a", version
		n.Annotations = map[string]string{"flannel.alpha.coreos.com/backend-type": value}
		return n
	}
	keys, err := layout.NewKeys("")
	testkit.Must(t, err)
	s := &Store{name: "node-a", keys: keys, table: layout.NewTable(keys, slog.New(slog.DiscardHandler))}
	r := &receiver{nodes: &nodes{s}, ctx: t.Context()}
	seen := func() string { return s.own.seen.Annotations["flannel.alpha.coreos.com/backend-type"] }
	for _, step := range []struct {
		what string
		do   func()
		want string
		gone bool
	}{
		{"an answer", func() { s.see(s.entry(node("99", "udp"))) }, "udp", false},
		{"a change by another program", func() { _ = r.Update(node("101", "removed")) }, "removed", false},
		{"an answer from before", func() { s.see(s.entry(node("100", "udp"))) }, "removed", false},
		{"an answer from after", func() { s.see(s.entry(node("102", "udp"))) }, "udp", false},
		{"the deletion", func() { _ = r.Delete(node("104", "udp")) }, "udp", true},
		{"an answer from before the deletion", func() { s.see(s.entry(node("103", "vxlan"))) }, "udp", true},
		{"a node of the same name", func() { _ = r.Update(node("105", "new")) }, "new", false},
	} {
		step.do()
		if seen() != step.want || s.own.gone != step.gone {
			t.Errorf("after %s the node has %q, gone %v; want %q, %v", step.what, seen(), s.own.gone, step.want, step.gone)
		}
	}
}
