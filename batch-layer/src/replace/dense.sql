-- Whether rows may be dense in the tables of a parent ($1): it has their arrays, and the view for people ($2), where there is
-- one already, reads arrays too. A view from before there were dense rows would show the first cell of each alone, and is made
-- anew only behind a flip.
select exists (select from pg_attribute
               where attrelid = to_regclass($1) and attname = '_bucket' and not attisdropped)
       and not exists (
           select from pg_class c
                join pg_namespace n on n.oid = c.relnamespace
           where n.nspname = 'metrics' and c.relname = $2
             and not exists (
                 select from pg_rewrite rule
                      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = rule.oid
                                          and d.refclassid = 'pg_class'::regclass
                      join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
                 where rule.ev_class = c.oid and a.attname = '_bucket'))
