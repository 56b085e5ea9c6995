package rules

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// lockSeconds is how long iptables waits for the lock that all its instances
// share.
const lockSeconds = 5

// The kinds of iptables, by the kernel subsystem that they use.
const (
	kindLegacy = "legacy"
	kindNFT    = "nf_tables"
)

// iptables implements tool with the iptables programs.
type iptables struct {
	*goiptables.IPTables // knows the features of its version
	runner
	family  *family
	program string
	path    string
	restore string // path of the program that writes rules
	kind    string
	only    []string       // tables in use; nil: possibly all
	failed  map[*chain]int // failed attempts to read or write chains that are not essential
}

// dispensableAfter is the number of failures after which the tool does without a chain
// that is not essential. It is less than attempts.
const dispensableAfter = 3

// openIPTables looks up a program by name, and the program beside it that
// writes rules.
func openIPTables(ctx context.Context, f *family, program string, r runner) (*iptables, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", program, err)
	}
	restore, err := exec.LookPath(program + "-restore")
	if err != nil {
		return nil, fmt.Errorf("find %s-restore: %w", program, err)
	}
	version, err := r.output(ctx, "", path, "--version")
	if err != nil {
		return nil, fmt.Errorf("run %s --version: %w", program, err)
	}
	kind := kindLegacy // versions before 1.8 have only this kind and do not print it
	if strings.Contains(version, "("+kindNFT+")") {
		kind = kindNFT
	}
	t := &iptables{runner: r, family: f, program: program, path: path, restore: restore, kind: kind, failed: make(map[*chain]int)}
	err = r.await(ctx, program, func() (err error) { // New runs the program again for its version
		t.IPTables, err = goiptables.New(goiptables.IPFamily(f.protocol), goiptables.Path(path))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", program, err)
	}
	return t, nil
}

// String implements tool.
func (t *iptables) String() string { return t.program }

// randomFully implements tool. As in flannel the version decides; every
// supported kernel has the feature (Linux 3.14).
func (t *iptables) randomFully(context.Context) (bool, error) { return t.HasRandomFully(), nil }

// drifts implements tool.
func (t *iptables) drifts(ctx context.Context, want target) ([]drift, error) {
	var all []drift
	for _, c := range chains {
		rules, asked := want.rules[c]
		if !asked || t.only != nil && !slices.Contains(t.only, c.table) || t.failed[c] >= dispensableAfter {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := t.drift(ctx, c, rules, want.tolerates)
		if err != nil && c.without != "" && len(rules) > 0 && ctx.Err() == nil {
			// For example, the kernel lacks the table.
			d, err = &drift{[]string{err.Error()}, func(ctx context.Context) error { return t.fail(ctx, c, err) }}, nil
		}
		if err != nil {
			return nil, err
		}
		if d != nil {
			all = append(all, *d)
		}
	}
	return all, nil
}

// fail returns err. It is a *dispensable if the chain is not essential and has failed
// dispensableAfter times.
func (t *iptables) fail(ctx context.Context, c *chain, err error) error {
	if err == nil || c.without == "" || ctx.Err() != nil {
		return err
	}
	if t.failed[c]++; t.failed[c] < dispensableAfter {
		return err
	}
	return &dispensable{t.family, c, err}
}

// drift compares one chain and the jump to it. It returns nil if both are as
// wanted.
func (t *iptables) drift(ctx context.Context, c *chain, want []rule, tolerates func([]string, *family) bool) (*drift, error) {
	hook, err := t.list(ctx, c.table, c.hook)
	if err != nil {
		return nil, fmt.Errorf("read %s %s with %s: %w", c.table, c.hook, t, oneLine(err))
	}
	own, exists, err := t.own(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read %s %s with %s: %w", c.table, c.name, t, oneLine(err))
	}
	d := difference{tool: t, chain: c, tx: transaction{table: c.table}}
	if len(want) > 0 {
		d.compareRules(own, exists, want, tolerates)
	}
	d.compareJumps(hook, len(want) > 0)
	write := t.write
	if len(want) == 0 && exists {
		d.note("has a superfluous chain %s", c.name)
		write = func(ctx context.Context, tx transaction) error { return t.remove(ctx, c, tx) }
	}
	if d.what == nil {
		return nil, nil
	}
	return &drift{d.what, func(ctx context.Context) error { return t.fail(ctx, c, write(ctx, d.tx)) }}, nil
}

// difference collects the drift of one chain.
type difference struct {
	tool  *iptables
	chain *chain
	what  []string
	tx    transaction // writes the wanted rules
}

func (d *difference) note(format string, args ...any) {
	d.what = append(d.what, fmt.Sprintf("%s %s ", d.tool, d.chain.table)+fmt.Sprintf(format, args...))
}

// compareRules compares the rules in the chain. If they differ, all of them are
// rewritten; rules of other networks are kept, after the wanted ones.
func (d *difference) compareRules(own []string, exists bool, want []rule, tolerates func([]string, *family) bool) {
	c := d.chain
	var mine, others []string
	for _, line := range own {
		if words := Words(line); slices.Contains(words, c.comment) && tolerates(words, d.tool.family) {
			others = append(others, line)
		} else {
			mine = append(mine, line)
		}
	}
	var lines [][]string
	for _, r := range want {
		lines = append(lines, append([]string{"-A", c.name}, r.iptables(c.comment)...))
	}
	switch {
	case !exists:
		d.note("has no chain %s", c.name)
	case !slices.EqualFunc(mine, lines, isLine):
		d.note("%s does not have the expected rules", c.name)
	default:
		return
	}
	d.tx.declare(c.name)
	for _, l := range lines {
		d.tx.add(l)
	}
	for _, l := range others {
		d.tx.again(l)
	}
}

// compareJumps checks that exactly one rule jumps to the chain, or none.
func (d *difference) compareJumps(hook []string, wanted bool) {
	c := d.chain
	jump := []string{"-A", c.hook, "-m", "comment", "--comment", c.comment, "-j", c.name}
	found := false
	for _, line := range hook {
		switch words := Words(line); {
		case !ours(words, c):
		case wanted && !found && slices.Equal(words, jump):
			found = true
		default:
			d.note("%s has a superfluous rule: %s", c.hook, line)
			d.tx.delete(line)
		}
	}
	if wanted && !found {
		d.note("%s does not jump to %s", c.hook, c.name)
		if c.first {
			jump[0] = "-I"
		}
		d.tx.add(jump)
	}
}

// own lists the rules of flannel's chain. If the chain is missing, iptables
// fails with a message that depends on its kind and version, so the names of
// all chains are checked after a failure. Listing them first would be slow in a
// large cluster.
func (t *iptables) own(ctx context.Context, c *chain) (lines []string, exists bool, err error) {
	lines, err = t.list(ctx, c.table, c.name)
	if err == nil {
		// The first line declares the chain.
		return lines[min(1, len(lines)):], true, nil
	}
	all, allErr := t.list(ctx, c.table)
	if allErr == nil && !slices.ContainsFunc(all, func(line string) bool { return isLine(line, []string{"-N", c.name}) }) {
		return nil, false, nil
	}
	return nil, false, err
}

// list returns the rules of a chain, or of all chains of a table, in the format
// of iptables -S.
func (t *iptables) list(ctx context.Context, table string, chain ...string) ([]string, error) {
	args := append([]string{"-t", table, "-S"}, chain...)
	switch { // the same cases as in go-iptables
	case t.since(1, 4, 22):
		args = append(args, "--wait", strconv.Itoa(lockSeconds))
	case t.since(1, 4, 20):
		args = append(args, "--wait")
	}
	text, err := t.output(ctx, "", t.path, args...)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = listedCounters.ReplaceAllString(line, "")
	}
	return lines, nil
}

// listedCounters matches the counters that some nftables-based versions print
// before a rule.
var listedCounters = regexp.MustCompile(`^\[[0-9]+:[0-9]+\] `)

// ours reports whether a rule outside flannel's chain belongs to flannel: it
// jumps to the chain, or carries flannel's comment, as in versions without a
// chain.
func ours(words []string, c *chain) bool {
	for i := 1; i < len(words); i++ {
		switch words[i-1] {
		case "-j", "-g":
			if words[i] == c.name {
				return true
			}
		case "--comment":
			if words[i] == c.comment {
				return true
			}
		}
	}
	return false
}

// remove removes the chain and commits tx. If other rules jump to the chain, it
// is only emptied.
func (t *iptables) remove(ctx context.Context, c *chain, tx transaction) error {
	tx.flush(c.name)
	all := tx
	all.remove(c.name)
	err := t.write(ctx, all)
	if err == nil {
		return nil
	}
	if t.write(ctx, tx) != nil {
		return err
	}
	return fmt.Errorf("remove %s %s with %s: rules that are not flannel's may jump to it, so it was only emptied; '%s -t %s -S | grep %s' lists them",
		c.table, c.name, t, t, c.table, c.name)
}

// write commits a transaction.
func (t *iptables) write(ctx context.Context, tx transaction) error {
	args := []string{"--noflush"}
	if t.since(1, 6, 2) { // older versions of iptables-restore do not support it
		args = append(args, fmt.Sprintf("--wait=%d", lockSeconds))
	}
	if _, err := t.output(ctx, tx.text(), t.restore, args...); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("write %s with %s-restore: %w", tx.table, t, err)
	}
	return nil
}

// since reports whether the program has this version or a later one.
func (t *iptables) since(version ...int) bool {
	v1, v2, v3 := t.GetIptablesVersion()
	return slices.Compare([]int{v1, v2, v3}, version) >= 0
}
