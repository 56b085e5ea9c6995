// Package deploy has only tests: they render deploy/charts and deploy/kubernetes with
// Helm's and kustomize's own libraries. Its module keeps those out of the others.
package deploy
