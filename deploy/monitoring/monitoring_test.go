// Package monitoring has no code: it holds what watches twilld. A test in internal/lab/e2e
// has a Prometheus evaluate it on a running daemon.
package monitoring

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/twillnet/twill/metrics/prom"
)

const promtool = "../../bin/peers/prometheus/promtool"

func TestAlertsFireOnWhatTheyAreFor(t *testing.T) {
	if _, err := os.Stat(promtool); err != nil {
		t.Fatalf("%v: run \"make prometheus\"", err)
	}
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "alerts.yaml"}, {"test", "rules", "alerts-test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests, err := os.ReadFile("alerts-test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules(t) {
		if !strings.Contains(string(tests), "alertname: "+rule.Alert+"\n    exp_alerts:") {
			t.Errorf("no test fires %s", rule.Alert)
		}
	}
}

type rule struct{ Alert, Expr string }

func rules(t *testing.T) (all []rule) {
	t.Helper()
	text, err := os.ReadFile("alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

var (
	name   = regexp.MustCompile(`\btwill_\w+`)
	suffix = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// A renamed metric must not leave a panel or an alert that is empty for ever.
func TestMetricsOfAlertsAndDashboardExist(t *testing.T) {
	var known []string
	for _, d := range prom.Descriptions() {
		known = append(known, d.Name)
	}
	dashboard, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(dashboard) {
		t.Error("dashboard.json is not JSON")
	}
	texts := map[string]string{"dashboard.json": string(dashboard)}
	for _, r := range rules(t) {
		texts[r.Alert] = r.Expr
	}
	for where, text := range texts {
		used := name.FindAllString(text, -1)
		for _, n := range used {
			if !slices.Contains(known, n) && !slices.Contains(known, suffix.ReplaceAllString(n, "")) {
				t.Errorf("%s uses %s, which twilld does not have", where, n)
			}
		}
		if len(used) == 0 && where != "TwillDown" {
			t.Errorf("%s uses no metric of twilld", where)
		}
	}
}

func TestPodMonitorSelectsThePodsOfTheManifest(t *testing.T) {
	var monitor struct {
		Spec struct {
			Selector            struct{ MatchLabels map[string]string }
			PodMetricsEndpoints []struct{ Port, Path string }
		}
	}
	text, err := os.ReadFile("podmonitor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &monitor); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("../kubernetes/base/kube-flannel.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(manifest), "\n---\n") {
		var set struct {
			Kind string
			Spec struct {
				Template struct {
					Metadata struct{ Labels map[string]string }
					Spec     struct {
						Containers []struct{ Ports []struct{ Name string } }
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(document), &set); err != nil {
			t.Fatal(err)
		}
		if set.Kind != "DaemonSet" {
			continue
		}
		for k, v := range monitor.Spec.Selector.MatchLabels {
			if set.Spec.Template.Metadata.Labels[k] != v {
				t.Errorf("the pods have no label %s: %s", k, v)
			}
		}
		port := set.Spec.Template.Spec.Containers[0].Ports[0].Name
		if e := monitor.Spec.PodMetricsEndpoints; len(e) != 1 || e[0].Port != port || e[0].Path != "/metrics" {
			t.Errorf("it scrapes %+v, the pods have the port %s", e, port)
		}
		return
	}
	t.Error("the manifest has no DaemonSet")
}

// The commands of the page make a PrometheusRule with all alerts.
func TestCommandsForTheOperatorApplyAllRules(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```sh\n")
	block, _, ok := strings.Cut(block, "```")
	if !ok {
		t.Fatal("README.md has no commands")
	}
	dir := t.TempDir()
	kubectl := "#!/bin/sh\nif [ \"$3\" = - ]; then cat; else cat \"$3\"; fi >\"$OUT/$(basename \"$3\")\"\n"
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", block)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "OUT="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	applied, err := os.ReadFile(filepath.Join(dir, "-"))
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Kind string
		Spec struct{ Groups []struct{ Rules []rule } }
	}
	if err := yaml.Unmarshal(applied, &object); err != nil {
		t.Fatalf("%v in\n%s", err, applied)
	}
	if object.Kind != "PrometheusRule" || len(object.Spec.Groups) != 1 || !slices.Equal(object.Spec.Groups[0].Rules, rules(t)) {
		t.Errorf("applied:\n%s", applied)
	}
	if _, err := os.Stat(filepath.Join(dir, "podmonitor.yaml")); err != nil {
		t.Error(err)
	}
}
