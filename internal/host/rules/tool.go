package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tool reads and writes the rules of one family with one program.
type tool interface {
	// String returns the name of the program, for messages.
	String() string
	// randomFully reports whether the tool can choose source ports at random.
	randomFully(ctx context.Context) (bool, error)
	// drifts returns the differences between want and the existing rules, none
	// if they are equal. It writes nothing.
	drifts(ctx context.Context, want target) ([]drift, error)
}

// drift is a difference between the wanted rules and the existing ones.
type drift struct {
	what []string // descriptions of the differences
	// write writes the wanted rules in one transaction. It fails if the rules
	// that it depends on were changed in the meantime.
	write func(ctx context.Context) error
}

// dispensable is a failure to create a chain that is not essential. The tool does without
// the chain from then on.
type dispensable struct {
	family *family
	chain  *chain
	error
}

// String describes what is missing.
func (d *dispensable) String() string { return d.family.name + ": " + d.chain.without }

// host determines where tools are found.
type host struct {
	procNet string // /proc/net of the calling thread's network namespace
	runner
}

var thisHost = host{procNet: "/proc/thread-self/net", runner: runner{toolTimeout}}

// open returns the tool that writes the rules of a family.
func (h host) open(ctx context.Context, f *family, nftables bool) (tool, error) {
	if nftables {
		return openNFTables(f, h.runner)
	}
	return openIPTables(ctx, f, f.iptables, h.runner)
}

// tools returns all tools that may have made flannel's rules of a family, one
// of each kind. It leaves out tools that are not installed or cannot run:
// either they have made no rules here, or nothing can be done about it.
func (h host) tools(ctx context.Context, f *family) []tool {
	if f == &ipv6 && !h.hasIPv6() {
		return nil
	}
	var all []tool
	if t, err := openNFTables(f, h.runner); err == nil {
		all = append(all, t)
	}
	var kinds []string
	for _, suffix := range []string{"", "-nft", "-legacy"} {
		t, err := openIPTables(ctx, f, f.iptables+suffix, h.runner)
		if err != nil || slices.Contains(kinds, t.kind) {
			continue
		}
		kinds = append(kinds, t.kind)
		// Legacy iptables creates a table by reading it.
		if t.kind == kindLegacy {
			t.only = h.legacyTables(f)
		}
		all = append(all, t)
	}
	return all
}

// legacyTables lists the tables that exist for legacy iptables. The file does
// not exist if the kernel does not support them.
func (h host) legacyTables(f *family) []string {
	names, _ := os.ReadFile(filepath.Join(h.procNet, f.legacy))
	tables := strings.Fields(string(names))
	if tables == nil {
		tables = []string{}
	}
	return tables
}

// explain adds the remedy to an error of a tool of the family.
func (h host) explain(f *family, err error) error {
	if r := h.remedy(f, err); r != "" {
		return fmt.Errorf("%w: %s", err, r)
	}
	return err
}

// noNFTables is the error message of nft, and of nftables-based iptables, on a
// kernel without nf_tables.
const noNFTables = "Protocol not supported"

// kernelLacks reports whether a tool failed because the kernel lacks its
// subsystem, in which case it cannot have any rules.
func kernelLacks(err error) bool { return strings.Contains(err.Error(), noNFTables) }

// hasIPv6 reports whether the kernel has IPv6.
func (h host) hasIPv6() bool {
	_, err := os.Stat(filepath.Join(h.procNet, "if_inet6"))
	return !errors.Is(err, fs.ErrNotExist)
}

// remedies lists remedies for error messages of tools. The first match applies.
var remedies = []struct{ says, remedy string }{
	{errHangs.Error(), "find out what it is waiting for with 'ps -ef' and 'cat /proc/PID/stack'; firewall rules are not maintained until then"},
	{noNFTables, "this kernel has no nftables; install iptables-legacy, or remove EnableNFTables from the network config"},
	{"xtables lock", "'fuser -v /run/xtables.lock' shows which process holds it"},
	{"you must be root", "run as root, or with the capabilities NET_ADMIN and NET_RAW"},
	{"Operation not permitted", "run as root, or with the capabilities NET_ADMIN and NET_RAW"},
	{"Permission denied", "run as root, or with the capabilities NET_ADMIN and NET_RAW"},
	{"is incompatible", "the table has rules that iptables cannot list; list them with 'nft list ruleset', " +
		"or move twill's rules to nftables with EnableNFTables in the network config"},
	{"do you need to insmod", "the kernel lacks the table; load its module with 'modprobe iptable_nat iptable_filter', " +
		"or set EnableNFTables in the network config"},
	{"JSON support not compiled-in", "install an nft with JSON (nftables-json on OpenWrt)"},
	{"nft version must be", "install a newer nftables, or remove EnableNFTables from the network config"},
}

// remedy returns the remedy for an error of a tool, or "" if none is known.
func (h host) remedy(f *family, err error) string {
	if f == &ipv6 && !h.hasIPv6() {
		return "IPv6 is disabled in this kernel; boot without ipv6.disable=1, or set EnableIPv6 to false in the network config"
	}
	var missing *exec.Error
	if errors.As(err, &missing) {
		if missing.Name == nftProgram {
			return "install nftables, or remove EnableNFTables from the network config"
		}
		return "install iptables, or set EnableNFTables in the network config, " +
			"or turn the rules off (--ip-masq=false --iptables-forward-rules=false)"
	}
	for _, r := range remedies {
		if strings.Contains(err.Error(), r.says) {
			return r.remedy
		}
	}
	if errors.Is(err, syscall.ENOENT) {
		return "the program was removed; reinstall it"
	}
	return ""
}
