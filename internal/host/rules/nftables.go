package rules

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

const nftProgram = "nft"

// nftables implements tool with the program nft.
type nftables struct {
	runner
	family *family
	path   string
	// writer is opened only when something must be written, since opening it
	// runs nft several times to detect its features.
	writer knftables.Interface
	random *bool    // nil: not known yet
	failed []*chain // chains that are not essential and that the kernel or nft does not support
}

func openNFTables(f *family, r runner) (*nftables, error) {
	path, err := exec.LookPath(nftProgram)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", nftProgram, err)
	}
	return &nftables{runner: r, family: f, path: path}, nil
}

// String implements tool.
func (t *nftables) String() string { return nftProgram }

func (t *nftables) open(ctx context.Context, table string) (w knftables.Interface, err error) {
	// New runs nft without a deadline to detect its features, so check first
	// that it runs.
	if _, err := t.output(ctx, "", t.path, "--version"); err != nil {
		return nil, fmt.Errorf("run %s --version: %w", nftProgram, err)
	}
	var opened knftables.Interface
	err = t.await(ctx, nftProgram, func() (err error) {
		opened, err = knftables.New(t.family.nft, table)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", nftProgram, oneLine(err))
	}
	return opened, nil
}

// probeTable is the table of rules that are only checked and never created, so
// that the result does not depend on the content of flannel's table.
const probeTable = "flannel-probe"

// randomFully implements tool: it has the kernel check a rule, as flannel does.
// If the same rule is also rejected without random ports, there is another cause.
func (t *nftables) randomFully(ctx context.Context) (bool, error) {
	if t.random != nil {
		return *t.random, nil
	}
	w, err := t.open(ctx, probeTable)
	if err != nil {
		return false, err
	}
	check := func(do verdict) error { return t.check(ctx, w, &masquerading, []rule{{do: do}}) }
	can := check(masqueradeFully) == nil
	if !can {
		if err := check(masquerade); err != nil {
			return false, fmt.Errorf("check a masquerading rule with %s: %w", nftProgram, err)
		}
	}
	t.random = &can
	return can, nil
}

// check has the kernel check a chain in the table of w, without creating it.
func (t *nftables) check(ctx context.Context, w knftables.Interface, c *chain, rules []rule) error {
	tx := w.NewTransaction()
	tx.Add(&knftables.Table{})
	t.fill(tx, c, rules)
	limited, cancel := t.limit(ctx)
	defer cancel()
	return t.explain(ctx, limited, nftProgram, w.Check(limited, tx))
}

// drifts implements tool.
func (t *nftables) drifts(ctx context.Context, want target) ([]drift, error) {
	want = want.except(t.failed)
	have, err := t.read(ctx)
	if err != nil {
		return nil, err
	}
	rewrite, what := t.compare(have, want)
	if len(what) == 0 {
		return nil, nil
	}
	return []drift{{what, func(ctx context.Context) error { return t.write(ctx, have, want, rewrite) }}}, nil
}

// compare returns the chains that differ from the wanted ones, and descriptions
// of the differences.
func (t *nftables) compare(have listing, want target) (rewrite []*chain, what []string) {
	differs := func(format string, args ...any) {
		what = append(what, fmt.Sprintf("table %s %s ", t.family.nft, t.family.table)+fmt.Sprintf(format, args...))
	}
	if have.exists && have.useless != "" {
		differs("%s", have.useless)
	}
	wanted := 0
	for _, c := range chains {
		rules, asked := want.rules[c]
		if len(rules) > 0 {
			wanted++
		}
		got, exists := have.chains[c.nft]
		switch {
		case !asked:
			continue
		case len(rules) == 0 && !exists:
			continue
		case len(rules) == 0:
			differs("has a superfluous chain %s", c.nft)
		case !exists:
			differs("has no chain %s", c.nft)
		case got.hook != c.listed():
			differs("has chain %s as %s, want %s", c.nft, got.hook, c.listed())
		case !slices.Equal(slices.DeleteFunc(slices.Clone(got.rules), want.other(t.family)), t.texts(rules)):
			differs("%s does not have the expected rules", c.nft)
		default:
			continue
		}
		rewrite = append(rewrite, c)
	}
	if len(what) == 0 && wanted == 0 && len(want.rules) == len(chains) && have.exists {
		differs("is not wanted")
	}
	return rewrite, what
}

// write writes the wanted rules of the chains in rewrite in one transaction. It
// replaces or removes the whole table if the table is useless or not wanted at
// all.
func (t *nftables) write(ctx context.Context, have listing, want target, rewrite []*chain) error {
	if t.writer == nil {
		w, err := t.open(ctx, t.family.table)
		if err != nil {
			return err
		}
		t.writer = w
	}
	tx := t.writer.NewTransaction()
	keep := slices.ContainsFunc(chains, func(c *chain) bool {
		rules, asked := want.rules[c]
		_, exists := have.chains[c.nft]
		return len(rules) > 0 || !asked && exists
	})
	afresh := have.exists && (!keep || have.useless != "")
	if afresh {
		tx.Delete(&knftables.Table{})
		rewrite = nil
		for _, c := range chains {
			if len(want.rules[c]) > 0 {
				rewrite = append(rewrite, c)
			}
		}
	}
	if keep {
		tx.Add(&knftables.Table{Comment: knftables.PtrTo("rules for " + t.family.table)})
	}
	for _, c := range rewrite {
		got, exists := have.chains[c.nft]
		if exists && !afresh && (len(want.rules[c]) == 0 || got.hook != c.listed()) {
			// A chain cannot be moved to another hook.
			tx.Flush(&knftables.Chain{Name: c.nft})
			tx.Delete(&knftables.Chain{Name: c.nft})
		}
		if len(want.rules[c]) == 0 {
			continue
		}
		t.fill(tx, c, want.rules[c])
		// Rules of other networks are kept, after the wanted ones.
		for _, text := range got.rules {
			if want.other(t.family)(text) {
				tx.Add(&knftables.Rule{Chain: c.nft, Rule: text})
			}
		}
	}
	limited, cancel := t.limit(ctx)
	defer cancel()
	if err := t.explain(ctx, limited, nftProgram, t.writer.Run(limited, tx)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fmt.Errorf("write table %s %s with %s: %w", t.family.nft, t.family.table, nftProgram, err)
		return t.without(ctx, want, rewrite, err)
	}
	return nil
}

// without returns err, the error of writing the chains. It is a *dispensable if a chain
// that is not essential caused it.
func (t *nftables) without(ctx context.Context, want target, chains []*chain, err error) error {
	w, openErr := t.open(ctx, probeTable)
	if openErr != nil || t.check(ctx, w, &forwarding, []rule{{do: accept}}) != nil {
		return err
	}
	for _, c := range chains {
		if rules := want.rules[c]; c.without != "" && len(rules) > 0 && t.check(ctx, w, c, rules) != nil && ctx.Err() == nil {
			t.failed = append(t.failed, c)
			return &dispensable{t.family, c, err}
		}
	}
	return err
}

// fill creates a chain with exactly these rules.
func (t *nftables) fill(tx *knftables.Transaction, c *chain, rules []rule) {
	tx.Add(&knftables.Chain{
		Name: c.nft, Comment: &c.about,
		Type: &c.kind, Hook: &c.at, Priority: &c.priority,
	})
	tx.Flush(&knftables.Chain{Name: c.nft})
	for _, text := range t.texts(rules) {
		tx.Add(&knftables.Rule{Chain: c.nft, Rule: text})
	}
}

// other returns a function that reports whether a rule belongs to another
// network.
func (t target) other(f *family) func(text string) bool {
	return func(text string) bool {
		return !strings.Contains(text, "{") && t.tolerates(strings.Fields(text), f)
	}
}

func (t *nftables) texts(rules []rule) []string {
	var all []string
	for _, r := range rules {
		all = append(all, r.nft(t.family))
	}
	return all
}

// read lists flannel's table.
func (t *nftables) read(ctx context.Context) (listing, error) {
	out, err := t.output(ctx, "", t.path, "--json", "list", "table", string(t.family.nft), t.family.table)
	switch {
	case err == nil:
		return parseListing([]byte(out)), nil
	case ctx.Err() != nil:
		return listing{}, ctx.Err()
	// The table does not exist; nft prints this message in no other case.
	case strings.Contains(err.Error(), "No such file or directory"):
		return listing{}, nil
	}
	return listing{}, fmt.Errorf("read table %s %s with %s: %w", t.family.nft, t.family.table, nftProgram, err)
}
