#!/usr/bin/env bash
# dependency-size.sh: the cost of each direct dependency in a static, stripped binary;
# docs/dependencies.md has the figures.
#
# It prints how much each one adds to a program that already uses what twilld uses of the
# standard library, through the calls that twill makes; the sizes of the programs, with
# and without the optional parts; and the bytes of code and constants in
# twilld, by module.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# How the Makefile has the compiler make twill.
read -ra small <<<"$(make print-SMALL)"

# size IMPORTS BODY FLAGS...: the size of the base program with BODY linked into it.
size() {
	cat >"$tmp/main.go" <<-GO
		package main

		import (
			"encoding/json"
			"flag"
			"log/slog"
			"net/http"
			"net/netip"
			"os"
			$1
		)

		func use() {
			$2
		}

		func main() {
			flag.Parse()
			if flag.NArg() > 0 {
				use() // only linked, never run
			}
			http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(map[string]netip.Addr{})
			})
			slog.New(slog.NewJSONHandler(os.Stderr, nil)).Info("base", "error", http.ListenAndServe("", nil))
		}
	GO
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' "${@:3}" -o "$tmp/out" "$tmp/main.go"
	stat -c %s "$tmp/out"
}

base=$(size "" "")
printf '%-40s %6d KiB\n' "base" $((base / 1024))

# row MODULE IMPORTS BODY: print how much MODULE adds to the base.
row() {
	local with
	with=$(size "$2" "$3")
	printf '%-40s %+6d KiB\n' "$1" $(((with - base) / 1024))
}

row golang.org/x/sys '"golang.org/x/sys/unix"' '
	_, _ = unix.Ppoll(nil, nil, nil)
	_ = unix.IoctlSetInt(0, 0, 0)
	_ = unix.SetsockoptInt(0, 0, 0, 0)'
row golang.org/x/net '"net"; "golang.org/x/net/ipv4"' '
	c, _ := net.ListenPacket("udp4", "")
	p := ipv4.NewPacketConn(c)
	_, _ = p.WriteBatch(nil, 0)'
row github.com/vishvananda/netlink '"github.com/vishvananda/netlink"' '
	l, _ := netlink.LinkByName("")
	_ = netlink.LinkSetUp(l)
	_ = netlink.LinkSetMTU(l, 0)
	_ = netlink.LinkDel(l)
	_ = netlink.AddrReplace(l, nil)
	_ = netlink.RouteReplace(nil)
	_, _ = netlink.AddrList(l, 0)
	_, _ = netlink.RouteListFiltered(0, nil, 0)
	_ = netlink.LinkSubscribeWithOptions(nil, nil, netlink.LinkSubscribeOptions{})'
row github.com/cilium/ebpf '"bytes"; "github.com/cilium/ebpf"; "github.com/cilium/ebpf/link"' '
	s, _ := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(nil))
	_ = s.LoadAndAssign(nil, nil)
	_ = s.Variables[""].Set(0)
	m := new(ebpf.Map)
	_ = m.Put(0, 0)
	_ = m.Delete(0)
	_ = m.Iterate().Next(nil, nil)
	l, _ := link.AttachTCX(link.TCXOptions{})
	_ = l.Pin("")
	l, _ = link.LoadPinnedLink("", nil)
	_ = l.Update(nil)'
prometheus='"github.com/prometheus/client_golang/prometheus"; "github.com/prometheus/client_golang/prometheus/collectors"; "github.com/prometheus/common/expfmt"'
exposition='
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	f, _ := r.Gather()
	_, _ = expfmt.MetricFamilyToText(os.Stderr, f[0])'
row github.com/prometheus/client_golang "$prometheus" "$exposition"
row github.com/gaissmai/bart '"github.com/gaissmai/bart"' '
	t := new(bart.Table[*int])
	t.Insert(netip.Prefix{}, nil)
	_, _ = t.Lookup(netip.Addr{})'
row github.com/hashicorp/golang-lru/v2 '"github.com/hashicorp/golang-lru/v2/simplelru"' '
	c, _ := simplelru.NewLRU[netip.Addr, *int](1, nil)
	_ = c.Add(netip.Addr{}, nil)
	_, _ = c.Get(netip.Addr{})
	c.Purge()'
row github.com/songgao/water '"github.com/songgao/water"' '
	i, _ := water.New(water.Config{DeviceType: water.TUN})
	_ = i.Close()'
row github.com/fsnotify/fsnotify '"github.com/fsnotify/fsnotify"' '
	w, _ := fsnotify.NewWatcher()
	_ = w.Add("")
	<-w.Events'
row github.com/coreos/go-iptables '"github.com/coreos/go-iptables/iptables"' '
	t, _ := iptables.New(iptables.IPFamily(iptables.ProtocolIPv6), iptables.Path(""), iptables.Timeout(5))
	_, _ = t.List("", "")
	_, _ = t.ListChains("")
	_ = t.HasRandomFully()'
row sigs.k8s.io/knftables '"context"; "sigs.k8s.io/knftables"' '
	n, _ := knftables.New(knftables.IPv4Family, "")
	tx := n.NewTransaction()
	tx.Add(&knftables.Chain{})
	tx.Delete(&knftables.Table{})
	_ = n.Check(context.Background(), tx)
	_ = n.Run(context.Background(), tx)'
etcd='"context"; clientv3 "go.etcd.io/etcd/client/v3"; "go.uber.org/zap"; "google.golang.org/grpc"'
leases='
	ctx := context.Background()
	c, _ := clientv3.New(clientv3.Config{Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{})}})
	_, _ = c.Txn(ctx).If(clientv3.Compare(clientv3.Version(""), "=", 0)).Then(clientv3.OpGet("")).Commit()
	_, _ = c.Grant(ctx, 0)
	_, _ = c.Revoke(ctx, 0)
	_, _ = c.TimeToLive(ctx, 0)
	<-c.Watch(clientv3.WithRequireLeader(ctx), "")'
row go.etcd.io/etcd/client/v3 "$etcd" "$leases"

# What the small programs cannot be smaller than.
floor() {
	printf '%-40s %6d KiB\n' "$1" $(($(size "$2" "$3" -tags grpcnotrace,nethttpomithttp2) / 1024))
}
echo
floor "base, without HTTP/2" "" ""
floor "with client_golang" "$prometheus" "$exposition"
floor "with etcd's client" "$etcd" "$leases"
floor "with both" "$prometheus; $etcd" "$exposition
$leases"

# shipped TITLE TAGS FLAGS...: the size of a program as the Makefile builds it, with
# further tags.
shipped() {
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -tags "grpcnotrace$2" -o "$tmp/shipped" "${@:3}"
	printf '%-40s %6d KiB\n' "$1" $(($(stat -c %s "$tmp/shipped") / 1024))
}

# twill-lab without plots: the files of bench/report that draw are replaced.
printf 'package report\n\nfunc (c chart) write(string) error { return nil }\n' >"$tmp/draw.go"
printf 'package report\n' >"$tmp/plotter.go"
printf '{"Replace": {"%s": "%s", "%s": "%s"}}' \
	"$PWD/bench/report/draw.go" "$tmp/draw.go" "$PWD/bench/report/plotter.go" "$tmp/plotter.go" >"$tmp/overlay.json"

echo
shipped "twilld" "" ./cmd/twilld
shipped "twilld without Kubernetes" ,nokube ./cmd/twilld
shipped "twilld without etcd's server" ,noembed ./cmd/twilld
shipped "twilld without both" ,noembed,nokube ./cmd/twilld
shipped "and without HTTP/2 in net/http" ,noembed,nokube,nethttpomithttp2 ./cmd/twilld
shipped "and without BPF: twilld-lite" ",$(make print-LITE)" ./cmd/twilld
shipped "and without etcd's client: twilld-board" ",$(make print-BOARD)" ./cmd/twilld
shipped "twill" ",$(make print-TWILL)" "${small[@]}" ./cmd/twill
shipped "twill-lab" "" ./cmd/twill-lab
shipped "twill-lab without gonum.org/v1/plot" "" -overlay "$tmp/overlay.json" ./cmd/twill-lab

# contents PROGRAM FLAGS...: bytes of code and constants in a program, by module, and of
# the standard library by purpose.
#
# A symbol has its package's path, which go list maps to a module. What the linker
# itself writes (type descriptors, tables of functions) belongs to no package; line tables
# are no symbols. Their size is proportional to that of the code.
contents() {
	local name=$1
	shift
	echo
	echo "in $name"
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$tmp/symbols" "$@"
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$tmp/stripped" "$@"
	awk -v file="$(stat -c %s "$tmp/stripped")" '
		NR == FNR {
			part = "the rest"
			if ($1 ~ /^(crypto|vendor|mime|net\/(http|textproto|url)|math\/big|encoding\/(asn1|pem))(\/|$)/)
				part = "HTTP and TLS"
			if ($1 ~ /^(runtime|internal\/runtime|reflect)(\/|$)/)
				part = "runtime"
			module[$1] = $2 == "std" ? "std, " part : $2
			next
		}
		$3 ~ /^[TtRr]$/ {
			name = $4
			sub(/[[(].*/, "", name)
			last = match(name, /[^\/]*$/)
			pkg = substr(name, 1, last - 1 + index(substr(name, last), ".") - 1)
			bytes[pkg in module ? module[pkg] : "linker"] += $2
			file -= $2
		}
		END {
			bytes["line tables, types, data"] = file
			for (m in bytes) printf "%-40s %7d KiB\n", m, bytes[m] / 1024
		}' \
		<(go list -deps -f '{{.ImportPath}} {{with .Module}}{{.Path}}{{else}}std{{end}}' "$@") \
		<(go tool nm -size "$tmp/symbols") | sort -t $'\t' -k1.41n -r
}

contents twilld -tags grpcnotrace ./cmd/twilld
contents twilld-lite -tags "grpcnotrace,$(make print-LITE)" ./cmd/twilld
contents twilld-board -tags "grpcnotrace,$(make print-BOARD)" ./cmd/twilld
contents twill -tags "grpcnotrace,$(make print-TWILL)" "${small[@]}" ./cmd/twill
