package daemon

import (
	"reflect"
	"testing"
)

// The command lines with which deployers of Kubernetes start flanneld, templates'
// empty arguments and variables included. Each means what it means to flannel, and
// nothing of it is passed over but an argument that flannel passes over too.
func TestCommandLinesOfDeployers(t *testing.T) {
	inPod := func(more environment) environment {
		env := environment{
			"POD_NAME": "kube-flannel-ds-x", "POD_NAMESPACE": "kube-flannel", "EVENT_QUEUE_DEPTH": "5000", "CONT_WHEN_CACHE_NOT_READY": "false",
			"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443",
		}
		for k, v := range more {
			env[k] = v
		}
		return env
	}
	positional := []ignoredFlag{{"", "every setting is a flag; see --help"}}
	for _, tt := range []struct {
		who  string
		args []string
		env  environment
		want func(*options) // besides --ip-masq and the pod
	}{
		{"kubeadm, with flannel's manifest", []string{"--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"}, nil, func(o *options) { o.healthzPort = 8081 }},
		{"the manifest of flannel 0.27", []string{"--ip-masq", "--kube-subnet-mgr"}, nil, func(*options) {}},
		{"kubespray", []string{"--ip-masq", "--kube-subnet-mgr"}, nil, func(*options) {}},
		{"kubespray with an interface", []string{"--ip-masq", "--kube-subnet-mgr", "--iface=eth1", "--iface-regex=^ens"}, nil, func(o *options) {
			o.iface, o.ifaceRegex = stringList{"eth1"}, stringList{"^ens"}
		}},
		{"kubespray with a variable that is empty", []string{"--ip-masq", "--kube-subnet-mgr", "--iface=", "--iface-regex="}, nil, func(o *options) {
			o.iface, o.ifaceRegex = stringList{""}, stringList{""} // the default route, to the search for an interface
		}},
		{"a template that leaves an argument empty", []string{"--ip-masq", "--kube-subnet-mgr", ""}, nil, func(o *options) { o.ignored = positional }},
		{"kOps", []string{"--ip-masq", "--kube-subnet-mgr", "--iptables-resync=10"}, nil, func(o *options) { o.resync = 10 }},
		{"Talos", []string{"--ip-masq", "--kube-subnet-mgr"}, environment{"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "7445"}, func(*options) {}},
		{"RKE2", []string{"--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"}, nil, func(o *options) { o.healthzPort = 8081 }},
		{"RKE2 Canal",
			[]string{"--ip-masq", "--kube-subnet-mgr", "--iptables-forward-rules=false", "--ip-blackhole-route", "--healthz-port=8081"},
			environment{"FLANNELD_IFACE": "", "FLANNELD_IFACE_REGEX": "", "FLANNELD_IP_MASQ": "true"}, func(o *options) {
				o.forwardRules, o.blackhole, o.healthzPort = false, true, 8081
			}},
		{"Canal with variables alone", []string{"--kube-subnet-mgr"}, environment{"FLANNELD_IFACE": "eth1", "FLANNELD_IFACE_REGEX": "", "FLANNELD_IP_MASQ": "true"}, func(o *options) {
			o.iface = stringList{"eth1"}
		}},
		{"arguments of klog", []string{"--ip-masq", "--kube-subnet-mgr", "-v=0", "--vmodule=", "--log_backtrace_at="}, nil, func(*options) {}},
	} {
		t.Run(tt.who, func(t *testing.T) {
			got, err := parse(tt.args, inPod(tt.env))
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			want.ipMasq, want.kube.on, want.kube.PodName, want.kube.PodNamespace = true, true, "kube-flannel-ds-x", "kube-flannel"
			tt.want(want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}
