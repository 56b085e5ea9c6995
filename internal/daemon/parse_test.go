package daemon

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/tun"
)

func TestFlagsAndEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		env  environment
		want func(*options) // changes the defaults to what is expected
	}{
		{"one dash", []string{"-lease-file", "f"}, nil, func(o *options) {}},
		{"two dashes and equals sign", []string{"--lease-file=f"}, nil, func(o *options) {}},
		{"repeated flags add up", []string{"-lease-file=f", "-iface=eth0", "-iface", "eth1", "-iface-regex=e.*"}, nil, func(o *options) {
			o.iface, o.ifaceRegex = stringList{"eth0", "eth1"}, stringList{"e.*"}
		}},
		{"environment", nil, environment{"FLANNELD_LEASE_FILE": "f", "FLANNELD_PUBLIC_IP": "192.0.2.1", "FLANNELD_HEALTHZ_PORT": "8081"}, func(o *options) {
			o.publicIP, o.healthzPort = netip.MustParseAddr("192.0.2.1"), 8081
		}},
		{"the command line wins", []string{"-lease-file=f", "-thread-pairs=2"}, environment{"FLANNELD_THREAD_PAIRS": "7", "FLANNELD_LEASE_FILE": "g"}, func(o *options) {
			o.threadPairs = 2
		}},
		{"an empty variable is none", []string{"-lease-file=f"}, environment{"FLANNELD_THREAD_PAIRS": "", "FLANNELD_ETCD_ENDPOINTS": ""}, func(o *options) {}},
		{"Kubernetes' service variables are none of ours", []string{"-lease-file=f"}, environment{"FLANNELD_SERVICE_HOST": "10.0.0.1", "FLANNELD_SERVICE_PORT_HTTP": "80", "FLANNELD_PORT": "udp://10.0.0.1:8285", "FLANNELD_PORT_8285_UDP_ADDR": "10.0.0.1"}, func(o *options) {}},
		{"a misspelt variable is named", []string{"-lease-file=f"}, environment{"FLANNELD_IFCAE": "eth0", "FLANNELD_FROBNICATE": "1", "FLANNEL_IFACE": "eth0"}, func(o *options) {
			o.ignored = []ignoredFlag{
				{"FLANNELD_FROBNICATE", "no flag has that name; --help lists them"},
				{"FLANNELD_IFCAE", "no flag has that name; did you mean FLANNELD_IFACE?"},
			}
		}},
		{"white space around values", []string{"-lease-file= f\r\n", "-iface=eth0\r", "-ip-masq= true ", "-thread-pairs=\t2"}, environment{"FLANNELD_PUBLIC_IP": " 192.0.2.1\n", "FLANNELD_ETCD_USERNAME": "u\r", "FLANNELD_ETCD_PASSWORD": "hunter2\n", "FLANNELD_ETCD_ENDPOINTS": " http://192.0.2.1:2379 ,\r\n"}, func(o *options) {
			o.iface, o.ipMasq, o.threadPairs = stringList{"eth0"}, true, 2
			o.publicIP = netip.MustParseAddr("192.0.2.1")
			o.etcd.Endpoints, o.etcd.Username, o.etcd.Password = []string{"http://192.0.2.1:2379"}, "u", etcd.NewSecret("hunter2")
			for _, f := range []string{"ENDPOINTS", "USERNAME", "PASSWORD"} {
				o.ignored = append(o.ignored, ignoredFlag{"FLANNELD_ETCD_" + f, "leases come from the file of --lease-file"})
			}
		}},
		{"arguments behind the flags", []string{"-lease-file=f", "serve", "now"}, nil, func(o *options) {
			o.ignored = []ignoredFlag{{"serve", "every setting is a flag; see --help"}, {"now", "every setting is a flag; see --help"}}
		}},
		{"an interface without a name", []string{"-lease-file=f", "-iface=", "-iface-regex="}, nil, func(o *options) {
			o.iface, o.ifaceRegex = stringList{""}, stringList{""}
		}},
		{"where stock flannel writes stack traces", []string{"-lease-file=f", "-log_backtrace_at=main.go:1"}, nil, func(o *options) {
			o.ignored = []ignoredFlag{{"--log_backtrace_at", "log lines have no stack traces"}}
		}},
		{"switches", []string{"-lease-file=f", "-udp-gso=off", "-tun-offload=on"}, nil, func(o *options) {
			o.switches.UDPGSO, o.switches.TunOffload = tun.Off, tun.On
		}},
		{"a flag by its former name", []string{"-lease-file=f", "-control-socket=/run/s"}, nil, func(o *options) { o.controlSocket = "/run/s" }},
		{"a variable by its former name", []string{"-lease-file=f"}, environment{"FLANNELD_CONTROL_SOCKET": "/run/s"}, func(o *options) { o.controlSocket = "/run/s" }},
		{"the command line before a former name", []string{"-lease-file=f", "-socket=/run/t"}, environment{"FLANNELD_CONTROL_SOCKET": "/run/s"}, func(o *options) { o.controlSocket = "/run/t" }},
		{"log level", []string{"-lease-file=f", "-log-level=warn", "-log-format=json"}, nil, func(o *options) {
			o.logLevel, o.logFormat = slog.LevelWarn, "json"
		}},
		{"rules", []string{"-lease-file=f", "-ip-masq", "-iptables-forward-rules=false", "-iptables-resync=30", "-ip-masq-fully-random-disable", "-ip-blackhole-route"}, nil, func(o *options) {
			o.ipMasq, o.forwardRules, o.resync, o.ipMasqOrderly, o.blackhole = true, false, 30, true, true
		}},
		{"not asking for what there is not", []string{"-lease-file=f", "-kube-subnet-mgr=false"}, nil, func(o *options) {}},
		{"etcd", []string{"-lease-file=", "-etcd-endpoints=https://192.0.2.1:2379, https://192.0.2.2:2379", "-etcd-prefix", "/n", "-etcd-cafile=ca", "-etcd-certfile=c", "-etcd-keyfile=k",
			"-etcd-username=u", "-on-lease-lost=exit", "-subnet-lease-renew-margin=1439"}, environment{"FLANNELD_ETCD_PASSWORD": "hunter2"}, func(o *options) {
			o.leaseFile, o.onLost, o.renewMargin = "", exitOnLost, 1439
			o.etcd = etcd.Options{
				Endpoints: []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}, Prefix: "/n",
				KeyFile: "k", CertFile: "c", CAFile: "ca", Username: "u", Password: etcd.NewSecret("hunter2"),
			}
		}},
		{"flannel's etcd at its defaults", nil, nil, func(o *options) {
			o.leaseFile = ""
			o.etcd = etcd.Options{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: "/coreos.com/network"}
		}},
		{"a lease file beside etcd", []string{"-lease-file=f", "-on-lease-lost=exit"}, environment{"FLANNELD_ETCD_PREFIX": "/n", "FLANNELD_ETCD_PASSWORD": "hunter2", "FLANNELD_ETCD_USERNAME": "u"}, func(o *options) {
			o.onLost, o.etcd.Prefix, o.etcd.Username, o.etcd.Password = exitOnLost, "/n", "u", etcd.NewSecret("hunter2")
			o.ignored = []ignoredFlag{
				{"--on-lease-lost", "leases in a file do not expire"},
				{"FLANNELD_ETCD_PREFIX", "leases come from the file of --lease-file"},
				{"FLANNELD_ETCD_USERNAME", "leases come from the file of --lease-file"},
				{"FLANNELD_ETCD_PASSWORD", "leases come from the file of --lease-file"},
			}
		}},
		{"Kubernetes", []string{"-kube-subnet-mgr", "-kubeconfig-file=k", "-set-node-network-unavailable=false"}, environment{"NODE_NAME": "n1", "FLANNELD_KUBE_API_URL": "https://192.0.2.1"}, func(o *options) {
			o.leaseFile, o.kube.on, o.kube.Node = "", true, "n1"
			o.kube.Kubeconfig, o.kube.APIURL, o.kube.Condition = "k", "https://192.0.2.1", false
		}},
		{"harmless flags of flannel", []string{"-lease-file=f", "-kube-api-url=http://192.0.2.1"}, environment{"FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "30"}, func(o *options) {
			o.renewMargin, o.kube.APIURL = 30, "http://192.0.2.1"
			o.ignored = []ignoredFlag{
				{"FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "leases in a file do not expire"},
				{"--kube-api-url", "it has an effect only with --kube-subnet-mgr"},
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := defaults()
			want.leaseFile = "f"
			tc.want(want)
			got, err := parse(tc.args, tc.env)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestWrongCommandLineIsNamed(t *testing.T) {
	for _, tc := range []struct {
		args []string
		env  environment
		want string // in the message
	}{
		{[]string{"-lease-fiel=f"}, nil, "unknown flag --lease-fiel; did you mean --lease-file?"},
		{[]string{"--frobnicate"}, nil, "unknown flag --frobnicate; --help"},
		{[]string{"-lease-file=f", "-ip-masq", "true", "-iface=eth0"}, nil, `argument "true": the flags after it, such as -iface=eth0, would be ignored`},
		{[]string{"-lease-file"}, nil, "needs an argument: -lease-file"},
		{[]string{"-lease-file=f", "-thread-pairs=many"}, nil, `invalid value "many" for flag -thread-pairs: want a whole number`},
		{[]string{"-lease-file=f", "-thread-pairs=257"}, nil, "--thread-pairs: 257"},
		{[]string{"-lease-file=f"}, environment{"FLANNELD_THREAD_PAIRS": "x"}, `FLANNELD_THREAD_PAIRS: invalid value "x"`},
		{[]string{"-lease-file=f", "-udp-gso=yes"}, nil, "auto, on, off"},
		{[]string{"-lease-file=f", "-source-check=lax"}, nil, "strict, inner, off"},
		{[]string{"-lease-file=f", "-log-format=xml"}, nil, "text or json"},
		{[]string{"-lease-file=f", "-healthz-port=70000"}, nil, "--healthz-port: 70000"},
		{[]string{"-lease-file=f", "-healthz-ip=here"}, nil, `invalid value "here" for flag -healthz-ip`},
		{[]string{"-lease-file=f", "-public-ip=2001:db8::1"}, nil, "use --public-ipv6"},
		{[]string{"-lease-file=f", "-public-ipv6=192.0.2.1"}, nil, "use --public-ip for"},
		{[]string{"-lease-file=f", "-public-ipv6=fe80::1%eth0"}, nil, "--public-ipv6: fe80::1%eth0 has a zone"},
		{[]string{"-lease-file=f", "-iface-can-reach=fe80::1%eth0"}, nil, "--iface-can-reach: fe80::1%eth0 has a zone"},
		{[]string{"-lease-file=f", "-iface-can-reach=example.org"}, nil, "want an IP address"},
		{[]string{"-lease-file=f", "-iface-regex=("}, nil, "--iface-regex"},
		{[]string{"-lease-file=f", "-tun-name=flannel-is-too-long"}, nil, "--tun-name"},
		{[]string{"-lease-file=f", "-tun-name=a/b"}, nil, "--tun-name"},
		{[]string{"-lease-file=f", "-subnet-lease-renew-margin=1440"}, nil, "1 to 1439"},
		{[]string{"-lease-file=f", "-iptables-resync=often"}, nil, "-iptables-resync"},
		{[]string{"-etcd-endpoints=http://127.0.0.1:2379,,"}, nil, "-etcd-endpoints: want a comma-separated list without empty items"},
		{[]string{"-etcd-endpoints=http://u:hunter2@192.0.2.1:2379"}, nil, "etcd endpoints: number 1, 192.0.2.1:2379, contains a user name; use --etcd-username"},
		{[]string{"-etcd-endpoints=ftp://192.0.2.1"}, nil, `etcd endpoints: number 1, "ftp://192.0.2.1"`},
		{[]string{"-etcd-endpoints=https://192.0.2.1:2379,192.0.2.2:2379"}, nil, "http and https cannot be mixed"},
		{[]string{"-etcd-endpoints="}, nil, "-etcd-endpoints: want a comma-separated list"},
		{[]string{"-etcd-prefix="}, nil, "--etcd-prefix is empty; set it to the prefix of the network's keys"},
		{nil, environment{"FLANNELD_ETCD_PASSWORD": "hunter2"}, "set both --etcd-username and --etcd-password, or neither"},
		{[]string{"-etcd-username=u"}, nil, "set both --etcd-username and --etcd-password, or neither"},
		{[]string{"-etcd-keyfile=k"}, nil, "set both --etcd-certfile and --etcd-keyfile, or neither"},
		{[]string{"-on-lease-lost=panic"}, nil, "want reacquire or exit"},
		{[]string{"-lease-file=f", "-iptables-resync=0"}, nil, "--iptables-resync: 0 is not from 1 to 86400 seconds"},
		{[]string{"-kube-subnet-mgr"}, nil, "--kube-subnet-mgr: node name not set: set the environment variable NODE_NAME"},
		{[]string{"-kube-subnet-mgr"}, environment{"POD_NAME": "p"}, "--kube-subnet-mgr: node name not set"},
		{[]string{"-kube-subnet-mgr", "-lease-file=f"}, environment{"NODE_NAME": "n1"}, "either from Kubernetes or from --lease-file"},
		{[]string{"-kube-subnet-mgr", "-embedded-etcd"}, environment{"NODE_NAME": "n1"}, "either from Kubernetes or from --embedded-etcd"},
		{[]string{"-kube-subnet-mgr", "-kube-annotation-prefix=a/b/c"}, environment{"NODE_NAME": "n1"}, `--kube-annotation-prefix: annotation prefix "a/b/c"`},
	} {
		_, err := parse(tc.args, tc.env)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q %v: got %v, want %q", tc.args, tc.env, err, tc.want)
			continue
		}
		if code := ExitCode(err); code != 2 {
			t.Errorf("%q: exit code %d, want 2", tc.args, code)
		}
		if s := err.Error(); strings.Contains(s, "\n") || strings.Contains(s, "hunter2") {
			t.Errorf("%q: more than one line, or a secret: %q", tc.args, s)
		}
	}
}

func TestPasswordIsNotShown(t *testing.T) {
	o, err := parse([]string{"-etcd-username=u", "-etcd-password=hunter2"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("options", "options", o, "password", o.etcd.Password)
	for _, text := range []string{fmt.Sprint(*o), fmt.Sprintf("%+v", *o), fmt.Sprintf("%#v", *o), log.String(), o.source(), string(help())} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("the password is in %q", text)
		}
	}
}

// Every flag of flannel is known, so that a unit file or manifest written for
// it gets an answer that says what is different here.
// TestDefaultsAreFlannels: a command line that relies on them means the same.
func TestDefaultsAreFlannels(t *testing.T) {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	defineAll(fs, defaults())
	for name, want := range map[string]string{
		"etcd-endpoints": "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd-prefix": "/coreos.com/network",
		"etcd-keyfile": "", "etcd-certfile": "", "etcd-cafile": "", "etcd-username": "", "etcd-password": "",
		"iface": "", "iface-regex": "", "iface-can-reach": "", "public-ip": "", "public-ipv6": "",
		"subnet-file": "/run/flannel/subnet.env", "subnet-lease-renew-margin": "60",
		"ip-masq": "false", "ip-masq-fully-random-disable": "false", "iptables-forward-rules": "true",
		"iptables-resync": "5", "ip-blackhole-route": "false",
		"kube-subnet-mgr": "false", "kube-api-url": "", "kubeconfig-file": "", "kube-annotation-prefix": "flannel.alpha.coreos.com",
		"net-config-path": "/etc/kube-flannel/net-conf.json", "set-node-network-unavailable": "true",
		"healthz-ip": "0.0.0.0", "healthz-port": "0", "version": "false", "v": "0", "vmodule": "",
	} {
		if got := fs.Lookup(name).Value.String(); got != want {
			t.Errorf("--%s is %q by default, flannel's %q", name, got, want)
		}
	}
}

func TestFlagsOfFlannelAreKnown(t *testing.T) {
	known, ours := map[string]bool{}, map[string]bool{}
	for _, f := range flags {
		ours[f.name] = f.group == groupDataplane || strings.Contains(f.help, "(not flannel's)")
		if known[f.name] {
			t.Errorf("--%s is defined twice", f.name)
		}
		known[f.name] = true
	}
	for name := range strings.FieldsSeq(`
		etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password
		iface iface-regex iface-can-reach public-ip public-ipv6
		subnet-file subnet-lease-renew-margin
		ip-masq ip-masq-fully-random-disable iptables-forward-rules iptables-resync ip-blackhole-route
		kube-subnet-mgr kube-api-url kubeconfig-file kube-annotation-prefix net-config-path set-node-network-unavailable
		healthz-ip healthz-port version v vmodule log_backtrace_at`) {
		if !known[name] {
			t.Errorf("--%s is not defined", name)
		}
		if ours[name] {
			t.Errorf("the help takes flannel's --%s for ours", name)
		}
		delete(known, name)
	}
	for name := range known { // those that flannel does not have
		if !ours[name] {
			t.Errorf("the help does not say that --%s is not flannel's", name)
		}
	}
}

func TestHelpListsEveryFlagWithin80Columns(t *testing.T) {
	text := help()
	for _, f := range flags {
		if !bytes.Contains(text, []byte("\n  --"+f.name)) {
			t.Errorf("--%s is missing", f.name)
		}
	}
	for line := range bytes.Lines(text) {
		if n := len(bytes.TrimRight(line, "\n")); n > helpWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestHelpAndVersionNeedNothingElse(t *testing.T) {
	for _, arg := range []string{"-h", "--help", "-version"} {
		var out, errs bytes.Buffer
		if err := Run(t.Context(), []string{arg}, nil, &out, &errs); err != nil {
			t.Errorf("%s: %v", arg, err)
		}
		if out.Len() == 0 || errs.Len() > 0 {
			t.Errorf("%s: stdout %q, stderr %q", arg, out.String(), errs.String())
		}
	}
}

func TestVerbosityLowersTheLevelOnly(t *testing.T) {
	for _, tc := range []struct {
		level     slog.Level
		verbosity int
		want      slog.Level
	}{
		{slog.LevelInfo, 0, slog.LevelInfo},
		{slog.LevelInfo, 1, slog.LevelDebug},
		{slog.LevelError, 10, slog.LevelDebug},
		{slog.LevelWarn, 0, slog.LevelWarn},
	} {
		o := options{logLevel: tc.level, verbosity: tc.verbosity}
		if got := o.level(); got != tc.want {
			t.Errorf("%v, -v=%d: %v, want %v", tc.level, tc.verbosity, got, tc.want)
		}
	}
}

func TestNearestIsWhatWasMeantOrNothing(t *testing.T) {
	names := []string{"iface", "iface-regex", "ip-masq", "v", "version"}
	for given, want := range map[string]string{
		"ifaec": "iface", "ipmasq": "ip-masq", "iface-regexp": "iface-regex", "versoin": "version",
		"completely-different": "",
	} {
		if got := nearest(given, names); got != want {
			t.Errorf("%s: %q, want %q", given, got, want)
		}
	}
}

// TestSettingsSayWhereFilesAndStoreAre: twill asks for them, from any directory.
func TestSettingsSayWhereFilesAndStoreAre(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for args, want := range map[string]status.Settings{
		"--lease-file=leases.json --subnet-file=run/subnet.env": {SubnetFile: dir + "/run/subnet.env", LeaseFile: dir + "/leases.json"},
		"--etcd-endpoints=https://192.0.2.1:2379 --etcd-prefix=/pods --etcd-cafile=ca.pem --etcd-certfile=/etc/node.pem --etcd-keyfile=node.key": {
			SubnetFile: "/run/flannel/subnet.env", Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: "/pods",
			CAFile: dir + "/ca.pem", CertFile: "/etc/node.pem", KeyFile: dir + "/node.key",
		},
	} {
		o, err := parse(strings.Fields(args), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := *o.settings(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", args, got, want)
		}
	}
}
