gateway {
  audit_retention = "ninety days"
}
driver "native" {}
