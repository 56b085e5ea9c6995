// Command reference writes the pages of docs that are made from the code: metrics, drop
// reasons, keys of the network configuration and flags; and the findings of doctor. "make
// reference" runs it; a test fails while a page is not what the code says.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/daemon"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/metrics/prom"
)

func main() {
	err := fmt.Errorf("usage: reference DIR")
	if len(os.Args) == 2 {
		err = write(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

// page returns the page of reference.
func page() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# Reference

<!-- made from the code by "make reference" -->

## Metrics

` + "`--healthz-port=PORT` serves them on `/metrics`" + `, beside those of the Go runtime (` + "`go_*`" + `) and of
the process (` + "`process_*`" + `). The number of series of a node does not grow with the number of
nodes. ` + "`direction` is `tx` from pods to the network, `rx` from the network to pods; `shard`" + `
is the number of a TUN queue with its sockets, or ` + "`kernel`" + ` for the kernel path.

| metric | type | labels | |
|---|---|---|---|
`)
	all := prom.Descriptions()
	slices.SortFunc(all, func(a, b prom.Description) int { return strings.Compare(a.Name, b.Name) })
	for _, m := range all {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, codes(m.Labels), m.Help)
	}
	b.WriteString("\n`reason` of `twill_waiting`: ")
	b.WriteString(codes(names(metrics.Ready+1, metrics.NumWaits)))
	b.WriteString(". `cause` of `twill_data_plane_restarts_total`: ")
	b.WriteString(codes(names(0, metrics.NumRestarts)))
	b.WriteString(".\n\n## Drop reasons\n\nThe label `reason` of `twill_dropped_packets_total`, and the drops of `twill status` and `twill top`:\n\n| reason | |\n|---|---|\n")
	for d := range metrics.NumDrops {
		fmt.Fprintf(&b, "| `%s` | %s |\n", d, d.Meaning())
	}
	if err := config(&b); err != nil {
		return nil, err
	}
	b.WriteString("\n## Flags of twilld\n\n```text\n")
	if err := daemon.Run(context.Background(), []string{"--help"}, nil, &b, io.Discard); err != nil {
		return nil, err
	}
	b.WriteString("```\n")
	return b.Bytes(), nil
}

// config writes the keys of the network configuration.
func config(b *bytes.Buffer) error {
	b.WriteString("\n## Network configuration\n\nThe same keys as flannel's, where flannel has them. Upper and lower case are the same; unknown\nkeys are ignored, with a warning by `twill config set`.\n\n| key | default | |\n|---|---|---|\n")
	if err := table(b, lease.ConfigKeys(), configKeys); err != nil {
		return err
	}
	var options []string
	for f := range reflect.TypeFor[vxlan.Options]().Fields() {
		options = append(options, f.Name)
	}
	fmt.Fprintf(b, "\n`Backend.Type` is one of %s. Its options:\n\n| key of `Backend` | default | |\n|---|---|---|\n", codes(backend.Types))
	return table(b, append(options, "UDPPort"), backendKeys)
}

// entry is a row about a key.
type entry struct{ key, initial, text string }

// table writes a row for each entry. It fails unless these are the keys of the code.
func table(b *bytes.Buffer, keys []string, entries []entry) error {
	left := slices.Compact(slices.Sorted(slices.Values(keys)))
	for _, e := range entries {
		i, ok := slices.BinarySearch(left, e.key)
		if !ok {
			return fmt.Errorf("key %s is described, but the code does not read it", e.key)
		}
		left = slices.Delete(left, i, i+1)
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", e.key, e.initial, e.text)
	}
	if len(left) > 0 {
		return fmt.Errorf("keys without a description: %s", strings.Join(left, ", "))
	}
	return nil
}

// names returns the names of the values from first up to end.
func names[T interface {
	~uint8
	fmt.Stringer
}](first, end T) (all []string) {
	for v := first; v < end; v++ {
		all = append(all, v.String())
	}
	return all
}

func codes(names []string) string {
	var all []string
	for _, n := range names {
		all = append(all, "`"+n+"`")
	}
	return strings.Join(all, ", ")
}
