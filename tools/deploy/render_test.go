package deploy

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// object is an object of Kubernetes.
type object map[string]any

// objects are those of a deployment, by kind and name.
type objects map[string]object

// at returns what is under a path of keys and indices; nil if nothing is.
func at(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			switch m := v.(type) {
			case object:
				v = m[k]
			case map[string]any:
				v = m[k]
			default:
				return nil
			}
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// pod returns what is under a path in the DaemonSet's pods.
func (o objects) pod(path ...any) any {
	return at(o["DaemonSet/kube-flannel-ds"], append([]any{"spec", "template", "spec"}, path...)...)
}

// names returns the names of the elements of a list in the pods.
func (o objects) names(list string) (names []string) {
	all, _ := o.pod(list).([]any)
	for _, e := range all {
		names = append(names, at(e, "name").(string))
	}
	return names
}

func parse(t *testing.T, all objects, text string) {
	t.Helper()
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v:\n%s", err, doc)
		}
		if o != nil {
			all[fmt.Sprintf("%v/%v", o["kind"], at(o, "metadata", "name"))] = o
		}
	}
}

// kustomized is what kubectl apply -k makes of a directory below deploy/kubernetes.
func kustomized(t *testing.T, dir string) objects {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "../../deploy/kubernetes/"+dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	all := objects{}
	parse(t, all, string(text))
	return all
}

// chartDir is where our chart is.
const chartDir = "../../deploy/charts/twill"

// helm is what helm install makes of a chart with values, in the form of values files,
// of which the later win. strict makes a value that is not there an error, which helm
// takes for empty.
func helm(strict bool, chart string, values ...string) (map[string]string, error) {
	c, err := loader.Load(chart)
	if err != nil {
		return nil, err
	}
	v := map[string]any{}
	for _, text := range values {
		file, err := chartutil.ReadValues([]byte(text))
		if err != nil {
			return nil, err
		}
		v = chartutil.MergeTables(file, v)
	}
	release := chartutil.ReleaseOptions{Name: "flannel", Namespace: "kube-flannel", IsInstall: true}
	render, err := chartutil.ToRenderValues(c, v, release, chartutil.DefaultCapabilities) // checks the schema
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: strict}.Render(c, render)
}

// installed is what helm install makes of our chart with values.
func installed(t *testing.T, values string) objects {
	t.Helper()
	files, err := helm(true, chartDir, values)
	return parsed(t, files, err)
}

// parsed returns the objects in what helm has returned.
func parsed(t *testing.T, files map[string]string, err error) objects {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	all := objects{}
	for _, text := range files {
		parse(t, all, text)
	}
	return all
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		g, _ := yaml.Marshal(got)
		w, _ := yaml.Marshal(want)
		if !bytes.Equal(g, w) {
			t.Errorf("%s is\n%s\nwant\n%s", what, g, w)
		}
	}
}
