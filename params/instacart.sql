-- Instacart's files as interactions and items; run from the folder that holds data/
-- An order's time is made of the days since the orders before it; each user begins on 1 January 2017
COPY (
    WITH timed AS (
        SELECT order_id, user_id,
               epoch(TIMESTAMP '2017-01-01')::BIGINT + order_hour_of_day::BIGINT * 3600 + 86400 * sum(
                   coalesce(days_since_prior_order::DOUBLE, 0)::BIGINT
               ) OVER (PARTITION BY user_id ORDER BY order_number::INTEGER)::BIGINT AS timestamp
        FROM read_csv('data/instacart/orders.csv', all_varchar = true)
    )
    SELECT user_id, product_id AS item_id, timestamp, 'purchase' AS event_type
    FROM read_csv('data/instacart/order_products__prior.csv', all_varchar = true) AS products
    JOIN timed USING (order_id)
) TO 'data/instacart/interactions.parquet';
COPY (
    SELECT product_id AS item_id, product_name AS title, department AS category_l1, aisle AS category_l2
    FROM read_csv('data/instacart/products.csv', all_varchar = true) AS products
    LEFT JOIN read_csv('data/instacart/aisles.csv', all_varchar = true) AS aisles USING (aisle_id)
    LEFT JOIN read_csv('data/instacart/departments.csv', all_varchar = true) AS departments
        USING (department_id)
) TO 'data/instacart/items.parquet';
