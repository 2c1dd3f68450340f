# The three hooks that sites have built into forks of the Kubernetes driver, as extensions: the request is enriched and
# never overwritten, a workspace's namespace is prepared before its first sandbox, and a sandbox that is ready is
# published, which fails no create.

gateway {
  data_dir = "/var/lib/sandgate"
  listen   = "unix:///run/sandgate/gateway.sock"
}

extension "tenant-namespace" {
  command  = "/usr/lib/sandgate/extensions/tenant-namespace"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  config {
    tenant "*" {
      labels = { "sidecar.istio.io/inject" = "true" }
      namespace {
        labels = { "istio-injection" = "enabled" }
      }
    }
  }
}

extension "route" {
  command  = "/usr/lib/sandgate/extensions/route"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  paths {
    write = ["/etc/traefik/sandboxes"]
  }
  config {
    directory = "/etc/traefik/sandboxes"
    domain    = "sandboxes.example.com"
  }
}

driver "kubernetes" {
  config {
    kubeconfig     = "/etc/sandgate/kubeconfig"
    workspace_mode = "managed" # the driver makes a namespace for each workspace
  }
}

driver "acme-cluster" {
  base = "kubernetes"

  bind "tenant-namespace" {
    grant {
      mutate = [ # without override: what a caller wrote stays, or the create is refused
        "PodTemplate.template.metadata.labels",
        "Namespace.metadata.labels",
      ]
    }
  }

  bind "route" {
    failure_policy = "fail_open" # a create goes on without it; a failure after that is recorded in any case
    activation     = "on_request"
  }

  expose {
    socket              = "/run/sandgate/drivers/acme-cluster.sock"
    allow_driver_config = true # so that a stock client can ask for a route
  }
}

activation "route" {
  default = true # for every sandbox of these workspaces, without being asked for
  when {
    workspace = "public-*"
  }
}

activation "route" { # for the others of those who ask
  when {
    workspace = "team-*"
  }
}
