package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a: vxlan and udp ─┬──────── host b: udp ── pod-b
//
//	Prometheus                  └── etcd
//
// A Prometheus that scrapes a node with both backends has data for every panel, and
// evaluates every alert.
func TestPrometheusFillsThePanelsOfTheDashboard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
	c.run(twill("a", metricsFlag, "--backend=auto", "--ip-masq", "--probe-interval=1"), twill("b", "--backend=udp"))
	c.waitTalk()
	p := c.startPrometheus(0, "127.0.0.1:9100")
	testkit.Must(t, ping(c.pod(0), c.pod(1).Addr, 1000))

	for title, queries := range dashboardQueries(t) {
		for _, q := range queries {
			// A query for problems only shows that there are none.
			q = regexp.MustCompile(` (>|==) 0(\)|$)`).ReplaceAllString(q, "$2")
			q = strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$instance", ".*").Replace(q)
			testkit.Eventually(t, fmt.Sprintf("%q has data: %s", title, q), func() bool { return p.count(t, q) > 0 })
		}
	}
	for _, r := range p.rules(t) {
		if r.Health != "ok" {
			t.Errorf("alert %s: %s %s", r.Name, r.Health, r.LastError)
		}
		if r.State != "inactive" {
			t.Errorf("alert %s is %s on a healthy node", r.Name, r.State)
		}
	}
}

// dashboardQueries returns the queries of each panel by its title.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/monitoring/dashboard.json")
	testkit.Must(t, err)
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	testkit.Must(t, json.Unmarshal(text, &d))
	all := make(map[string][]string)
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all[p.Title] = append(all[p.Title], target.Expr)
		}
	}
	return all
}

// prometheus is a server in the namespace of a host, asked from there.
type prometheus struct {
	client *http.Client
}

// startPrometheus starts a server on host number i that scrapes target every second and
// has the alerts of deploy/monitoring.
func (c *cluster) startPrometheus(i int, target string) *prometheus {
	t := c.t
	t.Helper()
	program, err := filepath.Abs("../../../bin/peers/prometheus/prometheus")
	testkit.Must(t, err)
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run \"make prometheus\"", err)
	}
	alerts, err := filepath.Abs("../../../deploy/monitoring/alerts.yaml")
	testkit.Must(t, err)
	dir := scratchDir(t)
	config := filepath.Join(dir, "prometheus.yml")
	testkit.Must(t, os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs:
- job_name: twill
  static_configs: [{targets: ["%s"]}]
`, alerts, target), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := c.nodes[i].NS.Command(ctx, program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090", "--log.level=warn")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // of what was signalled
		if t.Failed() {
			t.Logf("Prometheus:\n%s", log.String())
		}
	})
	transport := &http.Transport{DialContext: c.nodes[i].NS.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	p := &prometheus{&http.Client{Transport: transport, Timeout: testkit.Patience}}
	testkit.Eventually(t, "Prometheus has scraped the daemon", func() bool {
		var n []json.RawMessage
		return p.get("query?query="+url.QueryEscape("twill_ready == 1"), &struct{ Result *[]json.RawMessage }{&n}) == nil && len(n) == 1
	})
	return p
}

// get asks the API and decodes the data of its answer.
func (p *prometheus) get(path string, data any) error {
	res, err := p.client.Get("http://127.0.0.1:9090/api/v1/" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Error string
		Data  any
	}{Data: data}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// count returns the number of series that a query has.
func (p *prometheus) count(t *testing.T, query string) int {
	t.Helper()
	var data struct{ Result []json.RawMessage }
	testkit.Must(t, p.get("query?query="+url.QueryEscape(query), &data))
	return len(data.Result)
}

type alertRule struct{ Name, State, Health, LastError string }

// rules returns the alerts once all have been evaluated.
func (p *prometheus) rules(t *testing.T) (all []alertRule) {
	t.Helper()
	testkit.Eventually(t, "all alerts are evaluated", func() bool {
		var data struct{ Groups []struct{ Rules []alertRule } }
		testkit.Must(t, p.get("rules?type=alert", &data))
		all = nil
		for _, g := range data.Groups {
			all = append(all, g.Rules...)
		}
		for _, r := range all {
			if r.Health == "unknown" {
				return false
			}
		}
		return len(all) > 0
	})
	return all
}
