package diag

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Host returns the parts about the kernel of this host. unit is the name of the
// daemon's systemd unit.
func Host(unit string) []Part {
	return []Part{
		Command("kernel/version.txt", "kernel", "uname", "-a"),
		File("kernel/os-release.txt", "distribution", "/etc/os-release"),
		Command("kernel/links.txt", "interfaces and their counters", "ip", "-details", "-statistics", "link", "show"),
		Command("kernel/addresses.txt", "addresses", "ip", "address", "show"),
		Command("kernel/routes.txt", "routes of IPv4, all tables", "ip", "-4", "route", "show", "table", "all"),
		Command("kernel/routes6.txt", "routes of IPv6, all tables", "ip", "-6", "route", "show", "table", "all"),
		Command("kernel/route-cache.txt", "what the kernel has learnt of paths", "ip", "route", "show", "cache"),
		Command("kernel/policy.txt", "rules of policy routing", "ip", "rule", "show"),
		Command("kernel/neighbours.txt", "neighbours", "ip", "neighbour", "show"),
		Command("kernel/fdb.txt", "forwarding entries", "bridge", "fdb", "show"),
		Command("kernel/sockets.txt", "UDP sockets", "ss", "--udp", "--listening", "--numeric", "--memory", "--processes"),
		Command("rules/iptables.txt", "firewall, iptables", "iptables-save", "--counters"),
		Command("rules/ip6tables.txt", "firewall, ip6tables", "ip6tables-save", "--counters"),
		Command("rules/nftables.txt", "firewall, nftables", "nft", "list", "ruleset"),
		{Name: "kernel/sysctl.txt", What: "settings of forwarding and of queues", Read: sysctls},
		File("kernel/softnet.txt", "packets that the kernel dropped in its queues", "/proc/net/softnet_stat"),
		File("kernel/snmp.txt", "counters of IPv4 and UDP", "/proc/net/snmp"),
		File("kernel/snmp6.txt", "counters of IPv6 and UDP", "/proc/net/snmp6"),
		Command("daemon/unit.txt", "state of the unit", "systemctl", "show", "--property=ActiveState,SubState,NRestarts,ExecMainStatus,MemoryCurrent,DropInPaths", unit),
		Command("daemon/log.txt", "the last 2,000 lines of the log", "journalctl", "--unit="+unit, "--lines=2000", "--no-pager", "--output=short-iso-precise"),
	}
}

// Process returns the parts about a running daemon.
func Process(pid int) []Part {
	dir := filepath.Join("/proc", fmt.Sprint(pid))
	return []Part{
		{Name: "daemon/command.txt", What: "command line, passwords left out", Read: func(context.Context) ([]byte, error) {
			raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
			return []byte(commandLine(string(raw))), err
		}},
		File("daemon/process.txt", "memory, threads and capabilities", filepath.Join(dir, "status")),
		File("daemon/limits.txt", "limits", filepath.Join(dir, "limits")),
	}
}

// commandLine returns the arguments of /proc/PID/cmdline, one to a line, without
// passwords.
func commandLine(raw string) string {
	args := strings.Split(strings.TrimSuffix(raw, "\x00"), "\x00")
	for i, a := range args {
		name, _, hasValue := strings.Cut(a, "=")
		if !strings.HasPrefix(a, "-") || !strings.Contains(name, "password") {
			continue
		}
		if hasValue {
			args[i] = name + "=(left out)"
		} else if i+1 < len(args) {
			args[i+1] = "(left out)"
		}
	}
	return strings.Join(args, "\n") + "\n"
}

// sysctlFiles are patterns below /proc/sys/net of the settings that matter.
var sysctlFiles = []string{
	"ipv4/ip_forward", "ipv4/conf/*/rp_filter", "ipv4/conf/*/forwarding", "ipv4/conf/*/accept_local",
	"ipv4/ip_no_pmtu_disc", "ipv4/ip_forward_use_pmtu", "ipv4/route/min_pmtu", "ipv4/route/mtu_expires",
	"ipv4/ip_local_port_range", "ipv4/ip_local_reserved_ports", "ipv4/udp_mem",
	"ipv6/conf/*/forwarding", "ipv6/conf/*/disable_ipv6", "ipv6/conf/*/accept_ra",
	"bridge/bridge-nf-call-*", "core/rmem_max", "core/wmem_max", "core/netdev_max_backlog", "core/netdev_budget",
	"core/busy_poll", "core/bpf_jit_enable", "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_count",
	"netfilter/nf_conntrack_udp_timeout", "netfilter/nf_conntrack_checksum",
}

func sysctls(context.Context) ([]byte, error) {
	const root = "/proc/sys/net"
	var paths []string
	for _, pattern := range sysctlFiles {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		paths = append(paths, found...)
	}
	slices.Sort(paths)
	var out strings.Builder
	for _, path := range paths {
		value, err := os.ReadFile(path)
		if err != nil {
			value = []byte(err.Error())
		}
		fmt.Fprintf(&out, "net%s = %s\n", strings.TrimPrefix(path, root), strings.TrimSpace(string(value)))
	}
	return []byte(out.String()), nil
}
